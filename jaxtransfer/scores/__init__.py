"""Scores networks as starting points for labelled tasks, from the networks' features and the tasks' labels.

The measures are functions of features and labels; `jaxtransfer.score` computes them for networks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
