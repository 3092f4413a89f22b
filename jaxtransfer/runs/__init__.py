"""Run directories: one command, its settings and its results on disk, started, resumed and read again."""
