"""Default values of the settings that several functions and commands have in common."""

METHODS = ("saliency", "input_x_gradient", "epsilon_lrp")
"""The attribution methods of Song et al. (NeurIPS 2019)."""

PAPER = "paper"
"""The name that stands for `METHODS` where methods are named."""

ATTRIBUTIONS = (*METHODS, "unit_saliency", "integrated_gradients", "modelgif")
"""All attribution methods."""

LINEAR_PREDICTIVITY = "linear_predictivity"

COMPARED = (LINEAR_PREDICTIVITY, *METHODS)
"""The methods that compare networks unless others are named."""

EPSILON = 1e-4
"""Stabiliser of epsilon-LRP."""

EDGE_WEIGHT = 0.25
"""Weight of DEPARA's edges, where its nodes have the weight 1."""

PROBE_SIZE = 256
"""Height and width of probe images in pixels."""

MAX_SIDE = 8192
"""Largest height and width of images in pixels."""

RELEVANT = 5
"""Number of sources of a target that count as relevant: those that transfer best."""

RUN_RECORD = "run.json"
"""Name of the record of a run in its directory."""
