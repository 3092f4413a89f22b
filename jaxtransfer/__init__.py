"""Which of the networks I already have should my new task start from?"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxtransfer._version import __version__ as __version__
from jaxtransfer.errors import JaxTransferError as JaxTransferError

if TYPE_CHECKING:
    from jaxtransfer.attribution.diagnostics import FAULTS as FAULTS
    from jaxtransfer.attribution.diagnostics import random_signs as random_signs
    from jaxtransfer.attribution.maps import METHODS as METHODS
    from jaxtransfer.attribution.maps import attribute as attribute
    from jaxtransfer.attribution.maps import find_faults as find_faults
    from jaxtransfer.comparison.affinity import Affinity as Affinity
    from jaxtransfer.comparison.matrix import affinity_matrix as affinity_matrix
    from jaxtransfer.comparison.measure import Measure as Measure
    from jaxtransfer.comparison.representations import RELATIVES as RELATIVES
    from jaxtransfer.data.probe import Probe as Probe
    from jaxtransfer.data.probe import load_probe as load_probe
    from jaxtransfer.devices import device_mesh as device_mesh
    from jaxtransfer.evaluation.confidence import Band as Band
    from jaxtransfer.evaluation.confidence import RankedSource as RankedSource
    from jaxtransfer.evaluation.confidence import RetrievalBands as RetrievalBands
    from jaxtransfer.evaluation.confidence import certain_ranking as certain_ranking
    from jaxtransfer.evaluation.confidence import probability_above as probability_above
    from jaxtransfer.evaluation.confidence import retrieval_bands as retrieval_bands
    from jaxtransfer.evaluation.oracle import Oracle as Oracle
    from jaxtransfer.evaluation.retrieval import RankCorrelation as RankCorrelation
    from jaxtransfer.evaluation.retrieval import RetrievalCurve as RetrievalCurve
    from jaxtransfer.evaluation.retrieval import hits_at_k as hits_at_k
    from jaxtransfer.evaluation.retrieval import precision_at_k as precision_at_k
    from jaxtransfer.evaluation.retrieval import rank_correlations as rank_correlations
    from jaxtransfer.evaluation.retrieval import recall_at_k as recall_at_k
    from jaxtransfer.evaluation.retrieval import retrieval_curve as retrieval_curve
    from jaxtransfer.evaluation.tree import MantelTest as MantelTest
    from jaxtransfer.evaluation.tree import TaskTree as TaskTree
    from jaxtransfer.evaluation.tree import mantel_test as mantel_test
    from jaxtransfer.evaluation.tree import task_tree as task_tree
    from jaxtransfer.networks.network import Network as Network
    from jaxtransfer.networks.preprocess import Preprocess as Preprocess
    from jaxtransfer.networks.zoo import Zoo as Zoo
    from jaxtransfer.pge.alignment import gradient_alignment as gradient_alignment
    from jaxtransfer.pge.backbones import BACKBONES as BACKBONES
    from jaxtransfer.pge.backbones import Backbone as Backbone
    from jaxtransfer.pge.backbones import backbone as backbone
    from jaxtransfer.pge.batches import Episodes as Episodes
    from jaxtransfer.pge.batches import Minibatches as Minibatches
    from jaxtransfer.pge.estimator import PrincipalGradient as PrincipalGradient
    from jaxtransfer.pge.estimator import principal_gradient as principal_gradient
    from jaxtransfer.pge.gap import gap as gap
    from jaxtransfer.pge.losses import Prototypical as Prototypical
    from jaxtransfer.pge.losses import RandomHead as RandomHead
    from jaxtransfer.pge.losses import RidgeHead as RidgeHead
    from jaxtransfer.pge.losses import SquaredError as SquaredError

# Imported when first used: `jaxtransfer --help` must not wait for JAX.
_HOME = {
    "comparison.affinity": ("Affinity",),
    "attribution.maps": ("METHODS", "attribute", "find_faults"),
    "evaluation.confidence": (
        "Band",
        "RankedSource",
        "RetrievalBands",
        "certain_ranking",
        "probability_above",
        "retrieval_bands",
    ),
    "devices": ("device_mesh",),
    "attribution.diagnostics": ("FAULTS", "random_signs"),
    "evaluation.retrieval": (
        "RankCorrelation",
        "RetrievalCurve",
        "hits_at_k",
        "precision_at_k",
        "rank_correlations",
        "recall_at_k",
        "retrieval_curve",
    ),
    "networks.network": ("Network",),
    "evaluation.oracle": ("Oracle",),
    "pge.alignment": ("gradient_alignment",),
    "pge.backbones": ("BACKBONES", "Backbone", "backbone"),
    "pge.batches": ("Episodes", "Minibatches"),
    "pge.estimator": ("PrincipalGradient", "principal_gradient"),
    "pge.gap": ("gap",),
    "pge.losses": ("Prototypical", "RandomHead", "RidgeHead", "SquaredError"),
    "networks.preprocess": ("Preprocess",),
    "data.probe": ("Probe", "load_probe"),
    "comparison.representations": ("RELATIVES",),
    "comparison.matrix": ("affinity_matrix",),
    "comparison.measure": ("Measure",),
    "evaluation.tree": ("MantelTest", "TaskTree", "mantel_test", "task_tree"),
    "networks.zoo": ("Zoo",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'jaxtransfer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxtransfer.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE})
