"""Scores networks as starting points for labelled tasks, from the networks' features and the tasks' labels."""
