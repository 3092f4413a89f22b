"""Images and labelled data from disk."""
