"""The settings that define affinities. JAX is imported only to check them, so that `--help` can show the defaults."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtransfer.defaults import ATTRIBUTIONS, COMPARED, EDGE_WEIGHT, EPSILON, PAPER
from jaxtransfer.errors import JaxTransferError

if TYPE_CHECKING:
    from jaxtransfer.attribution.precision import Precision
    from jaxtransfer.points.compute import Target
    from jaxtransfer.points.directions import Similarity


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffinityOptions:
    """Holds the settings that an affinity depends on, besides the networks and the images.

    Attributes:
        methods: One or several of `ATTRIBUTIONS` and `RELATIVES`; a single name is made a tuple, and "paper" is made
            the three maps of Song et al. (NeurIPS 2019).
        target: The scalar that maps attribute: "sum" of all units, "random_signs", their sum with random signs, or
            "spatial_maximum", the sum of every channel's largest value; "unit_saliency" does not depend on it.
        similarity: Similarity of two maps: "cosine", or "correlation", which removes each map's mean over pixels first.
        epsilon: Stabiliser of epsilon-LRP; > 0.
        sketch: Numbers kept of each map, see `Projection`; None: whole maps.
        precision: Precision of matrix products in the networks' passes: "float32", "tf32" or "bfloat16".
        edge_weight: Weight of DEPARA's edges, where its nodes have the weight 1; >= 0.

    Raises:
        JaxTransferError: A setting has no such value.

    Examples:
        >>> AffinityOptions(methods="saliency").methods
        ('saliency',)
    """

    methods: Sequence[str] = COMPARED
    target: "Target" = "sum"
    similarity: "Similarity" = "cosine"
    epsilon: float = EPSILON
    sketch: int | None = None
    precision: "Precision" = "float32"
    edge_weight: float = EDGE_WEIGHT

    def __post_init__(self) -> None:
        """Checks every setting."""
        from jaxtransfer.arguments import check_name, check_positive, checked_methods
        from jaxtransfer.attribution.precision import PRECISIONS
        from jaxtransfer.comparison.representations import RELATIVES
        from jaxtransfer.points.compute import TARGETS
        from jaxtransfer.points.directions import SIMILARITIES

        object.__setattr__(self, "methods", checked_methods(self.methods))
        known = (*ATTRIBUTIONS, *RELATIVES, PAPER)
        if not self.methods:
            raise JaxTransferError(f"No method is named; there are: {', '.join(known)}.")
        for method in self.methods:
            check_name("method", method, known)
        check_name("target", self.target, TARGETS)
        check_name("similarity", self.similarity, SIMILARITIES)
        check_name("precision", self.precision, PRECISIONS)
        check_positive("epsilon", self.epsilon)
        if not 0 <= self.edge_weight < math.inf:
            raise JaxTransferError(f"The weight of edges must be 0 or more, not {self.edge_weight}.")
        if self.sketch is not None and self.sketch < 1:
            raise JaxTransferError(f"A sketch must have at least 1 number, not {self.sketch}.")

    def as_settings(self) -> dict[str, Any]:
        """Returns the fields as `run.json` holds them: `edge_weight` only for DEPARA, and which CKA "cka" stands for.

        In version 0.1.0 "cka" was the biased one, and its records have no such entry (see `runs.record.read`).
        """
        settings = dataclasses.asdict(self)
        if "depara" not in self.methods:
            del settings["edge_weight"]
        return settings | ({"cka": "unbiased"} if "cka" in self.methods else {})
