"""Evaluation: how well affinities predict measured transfer, how certain rankings are, and the trees they give."""
