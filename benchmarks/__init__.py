"""Speed, ours beside the peers, in one process and in turns; nothing here is a test."""
