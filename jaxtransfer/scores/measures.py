"""The measures by which networks are scored: their names and labels, and their values with pseudo-values.

`ridge`, `logistic` and `knn` are cross-validated over the groups of examples. The others are computed from all
examples, and from all but those of each group. Of several such measures all are computed of a part before the next part
is taken, so they share decompositions (`spectra`), and only one is held at a time.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.comparison.statistics import pseudo_values
from jaxtransfer.data.datasets import TargetType
from jaxtransfer.errors import JaxTransferError, unknown_name
from jaxtransfer.scores.dissimilarity import rank_correlation
from jaxtransfer.scores.evidence import log_evidence
from jaxtransfer.scores.examples import FeatureArray, pooled, usable_examples
from jaxtransfer.scores.fisher import challenged_likelihood
from jaxtransfer.scores.logistic_regression import logistic
from jaxtransfer.scores.mixture import mixture_score
from jaxtransfer.scores.nearest_neighbours import knn
from jaxtransfer.scores.pac_bayes import negative_bound
from jaxtransfer.scores.ridge_regression import ridge
from jaxtransfer.scores.scatter import between_share, bhattacharyya, coding_rate_gain, shrunk_between_share
from jaxtransfer.scores.score import Score
from jaxtransfer.scores.source_classes import Predictions, log_expected_prediction, negative_entropy
from jaxtransfer.scores.spectra import Examples
from jaxtransfer.scores.target import Target

_IN_WORDS: dict[TargetType, str] = {
    "classes": "classes",
    "numbers": "numbers",
    "multilabel": "several labels an image",
    "dense": "numbers of pixels",
    "dense_classes": "classes of pixels",
}


@dataclasses.dataclass(frozen=True)
class MeasureSpec:
    """Describes a measure; larger is better for all of them.

    Attributes:
        name: Its name.
        summary: What it computes, in a few words.
        source: Where it was published.
        target_types: Types of labels that it allows.
        takes: What `compute` takes: "features", all features and the target, of which it computes a `Score`; "examples"
            (`spectra.Examples`) or "predictions" (`source_classes.Predictions`), of which it computes a value.
        compute: The function.
    """

    name: str
    summary: str
    source: str
    compute: Callable[..., Any]
    target_types: tuple[TargetType, ...] = ("classes",)
    takes: Literal["features", "examples", "predictions"] = "examples"

    @property
    def needs_probabilities(self) -> bool:
        """Whether the measure needs the probabilities of the network's own classes instead of its features."""
        return self.takes == "predictions"

    def run(self, values: FeatureArray, target: Target) -> Score:
        """Computes the measure of a network.

        Args:
            values: Features [n, height, width, units] or [n, units], of which the mean over places counts; or, if the
                measure needs them, probabilities [n, source classes]. Examples for which they are not finite, or that
                have no label, are left out.
            target: The labels.

        Raises:
            JaxTransferError: The measure does not allow this type of labels, or too few examples are usable.
        """
        values_of = {"probabilities": values} if self.needs_probabilities else {"features": values}
        return run_measures([self.name], target, **values_of)[self.name]


_SPECS = [
    MeasureSpec(
        "ridge",
        "Share of the variance of the labels that a linear map predicts on held-out examples.",
        "Ridge regression; as a probe: Alain and Bengio, arXiv 1610.01644",
        ridge,
        ("classes", "numbers", "multilabel", "dense", "dense_classes"),
        takes="features",
    ),
    MeasureSpec(
        "logistic",
        "Accuracy of logistic regression on held-out examples; average precision of several labels an image.",
        "As a probe: Alain and Bengio, arXiv 1610.01644",
        logistic,
        ("classes", "multilabel"),
        takes="features",
    ),
    MeasureSpec(
        "knn",
        "Leave-one-out accuracy, or R2, of the nearest neighbours.",
        "arXiv 2503.18528",
        knn,
        ("classes", "numbers", "multilabel"),
        takes="features",
    ),
    MeasureSpec(
        "logme",
        "Log evidence of a Bayesian linear regression from features to labels, per example.",
        "You et al., ICML 2021, arXiv 2102.11005",
        log_evidence,
        ("classes", "numbers", "multilabel"),
    ),
    MeasureSpec(
        "hscore",
        "Variance between classes in units of all variance of the features.",
        "Bao et al., ICIP 2019",
        between_share,
    ),
    MeasureSpec(
        "hscore_shrunk",
        "H-score with the shrunk covariance of Ledoit and Wolf.",
        "Ibrahim et al., arXiv 2110.06893",
        shrunk_between_share,
    ),
    MeasureSpec(
        "nce",
        "Negative entropy of the labels given the network's most probable class.",
        "Tran et al., ICCV 2019",
        negative_entropy,
        takes="predictions",
    ),
    MeasureSpec(
        "leep",
        "Log likelihood of the labels given the network's probabilities.",
        "Nguyen et al., ICML 2020, arXiv 2002.12462",
        log_expected_prediction,
        takes="predictions",
    ),
    MeasureSpec(
        "nleep",
        "LEEP with the components of a Gaussian mixture of the features in place of the network's classes.",
        "Li et al., CVPR 2021, arXiv 2011.11200",
        mixture_score,
    ),
    MeasureSpec(
        "transrate",
        "Coding rate of all features, less the mean coding rate of a class.",
        "Huang et al., ICML 2022, arXiv 2106.09362",
        coding_rate_gain,
    ),
    MeasureSpec(
        "gbc",
        "Overlap of the classes as spherical Gaussians, with its sign changed.",
        "Pandy et al., CVPR 2022, arXiv 2111.12780",
        bhattacharyya,
    ),
    MeasureSpec(
        "parc",
        "Rank correlation of the dissimilarities of features with those of labels, times 100.",
        "Bolya et al., NeurIPS 2021, arXiv 2111.06977",
        rank_correlation,
    ),
    MeasureSpec(
        "sfda",
        "Log likelihood of the labels under a discriminant analysis that challenges itself.",
        "Shao et al., ECCV 2022, arXiv 2207.03036",
        challenged_likelihood,
    ),
    MeasureSpec(
        "pactran",
        "PAC-Bayesian bound on the cross-entropy of a linear head, with its sign changed.",
        "Ding et al., ECCV 2022, arXiv 2203.05126",
        negative_bound,
    ),
]
MEASURES: dict[str, MeasureSpec] = {spec.name: spec for spec in _SPECS}
"""The measures by name."""


def measure_spec(name: str) -> MeasureSpec:
    """Returns a measure by its name.

    Raises:
        JaxTransferError: There is no such measure.
    """
    if name not in MEASURES:
        raise unknown_name("measure", name, MEASURES)
    return MEASURES[name]


def check_target_type(name: str, target_type: TargetType) -> None:
    """Checks that a measure allows a type of labels.

    Raises:
        JaxTransferError: It does not, or there is no such measure.
    """
    spec = measure_spec(name)
    if target_type not in spec.target_types:
        allowed = " or ".join(_IN_WORDS[known] for known in spec.target_types)
        others = ", ".join(other.name for other in MEASURES.values() if target_type in other.target_types)
        raise JaxTransferError(
            f"The measure {name} needs labels that are {allowed}, and these are {_IN_WORDS[target_type]}; there are: "
            f"{others or 'none yet'}."
        )


def run_measures(
    names: Iterable[str],
    target: Target,
    *,
    features: FeatureArray | None = None,
    probabilities: FeatureArray | None = None,
) -> dict[str, Score]:
    """Computes several measures of a network, which share decompositions.

    Args:
        names: Names of the measures.
        target: The labels.
        features: As for `MeasureSpec.run`; needed by all measures but those of probabilities.
        probabilities: As for `MeasureSpec.run`.

    Returns:
        The scores in the order of `names`.

    Raises:
        JaxTransferError: As for `MeasureSpec.run`, or a measure lacks the features or probabilities that it needs.
    """
    specs = [measure_spec(name) for name in names]
    scores: dict[str, Score] = {}
    for spec in specs:
        check_target_type(spec.name, target.target_type)
        if (probabilities if spec.needs_probabilities else features) is None:
            needed = "the probabilities of the network's own classes" if spec.needs_probabilities else "features"
            raise JaxTransferError(f"The measure {spec.name} needs {needed}; there are none.")
    for takes, values, of in (("examples", features, Examples.of), ("predictions", probabilities, Predictions.of)):
        statistics = {spec.name: spec.compute for spec in specs if spec.takes == takes}
        if statistics and values is not None:
            kept = usable_examples(values, target)
            examples = of(pooled(values, kept), target.values[kept])
            scores |= jackknife(statistics, examples, target.group[kept], int(target.group.max()) + 1)
    scores |= {spec.name: spec.compute(features, target) for spec in specs if spec.takes == "features"}
    return {spec.name: scores[spec.name] for spec in specs}


class _Divisible(Protocol):
    """Examples of which some can be left out."""

    def without(self, left_out: Bool[np.ndarray, " examples"]) -> Self: ...


def jackknife(
    statistics: Mapping[str, Callable[[Any], float]],
    examples: _Divisible,
    group: Int[np.ndarray, " examples"],
    groups: int,
) -> dict[str, Score]:
    """Computes statistics of all examples, and their pseudo-values by leaving out each group.

    Args:
        statistics: Functions of the examples, by name.
        examples: The examples.
        group: Group of each example.
        groups: Number of groups.
    """

    def values(part: _Divisible) -> Float[np.ndarray, " statistics"]:
        return np.array([statistic(part) for statistic in statistics.values()])

    whole = values(examples)
    without = np.array([values(examples.without(group == number)) for number in range(groups)])
    samples = pseudo_values(whole, without)
    return {name: Score(float(whole[i]), samples[:, i]) for i, name in enumerate(statistics)}
