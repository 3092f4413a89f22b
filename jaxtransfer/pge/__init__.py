"""Principal gradient expectation: tasks compared by how they pull freshly initialised weights (arXiv 2211.16299)."""
