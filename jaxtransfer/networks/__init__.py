"""Trained networks: functions with weights, the preprocessing they expect, and zoos that store them."""
