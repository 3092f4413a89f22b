"""Tells how well affinities predict measured transfer and how certain rankings are, and builds trees of tasks."""
