"""NCE and LEEP against their definitions, example by example."""

import math

import numpy as np
import pytest

from jaxtransfer import JaxTransferError
from jaxtransfer.scores import leep, nce

_LABELS = np.random.default_rng(0).integers(3, size=40)
_PROBABILITIES = np.random.default_rng(1).dirichlet(np.ones(5), 40)


def _entropy(labels: np.ndarray) -> float:
    shares = np.bincount(labels) / len(labels)
    return -sum(share * math.log(share) for share in shares if share)


def test_nce_is_the_negative_conditional_entropy() -> None:
    chosen = _PROBABILITIES.argmax(1)
    expected = -sum((chosen == z).mean() * _entropy(_LABELS[chosen == z]) for z in set(chosen))
    np.testing.assert_allclose(nce(_PROBABILITIES, _LABELS), expected, rtol=1e-12)


def test_independent_classes_give_the_entropy_of_the_labels_and_equal_classes_give_zero() -> None:
    labels = np.repeat([0, 1, 2], [4, 8, 4])
    independent = np.eye(4)[np.arange(16) % 4]
    np.testing.assert_allclose(nce(independent, labels), -_entropy(labels))
    np.testing.assert_allclose(leep(independent, labels), -_entropy(labels))
    assert nce(np.eye(3)[labels], labels) == leep(np.eye(3)[labels], labels) == 0


def test_leep_is_the_mean_logarithm_of_the_expected_prediction() -> None:
    """Four published repositories leave the logarithm out."""
    examples, source_classes = _PROBABILITIES.shape
    joint = np.zeros((3, source_classes))
    for example in range(examples):
        joint[_LABELS[example]] += _PROBABILITIES[example] / examples
    likelihoods = [
        sum(joint[label, z] / joint[:, z].sum() * row[z] for z in range(source_classes))
        for row, label in zip(_PROBABILITIES, _LABELS, strict=True)
    ]
    np.testing.assert_allclose(leep(_PROBABILITIES, _LABELS), np.mean(np.log(likelihoods)), rtol=1e-12)
    assert leep(_PROBABILITIES, _LABELS) < 0 < np.mean(likelihoods)


def test_leep_lies_between_its_bounds_and_is_nce_for_certain_predictions() -> None:
    """LEEP is at least -H(y), and of one-hot probabilities it is NCE."""
    one_hot = np.eye(5)[_PROBABILITIES.argmax(1)]
    np.testing.assert_allclose(leep(one_hot, _LABELS), nce(one_hot, _LABELS), rtol=1e-12)
    assert -_entropy(_LABELS) < leep(_PROBABILITIES, _LABELS) < 0
    chosen = np.log(_PROBABILITIES.max(1)).mean()
    assert leep(_PROBABILITIES, _LABELS) >= nce(_PROBABILITIES, _LABELS) + chosen  # the paper's property 1


def test_classes_that_are_never_predicted_do_not_matter() -> None:
    padded = np.pad(_PROBABILITIES, ((0, 0), (0, 3)))
    assert leep(padded, _LABELS) == pytest.approx(leep(_PROBABILITIES, _LABELS), rel=1e-12)
    assert nce(padded, _LABELS) == nce(_PROBABILITIES, _LABELS)


@pytest.mark.parametrize("probabilities", [2 * _PROBABILITIES, _PROBABILITIES - 0.2, _PROBABILITIES[:, :4]])
def test_what_is_no_probability_is_refused(probabilities: np.ndarray) -> None:
    for measure in (nce, leep):
        with pytest.raises(JaxTransferError, match="those of an example sum to 1"):
            measure(probabilities, _LABELS)
