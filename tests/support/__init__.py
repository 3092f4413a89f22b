"""What several test files use: tiny networks, PyTorch originals and finished runs."""
