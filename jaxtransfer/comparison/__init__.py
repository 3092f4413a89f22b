"""Comparison: from points to affinities between networks, with their standard errors."""
