"""Measures of what the classes that a network predicts say about the labels: NCE and LEEP."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.scores.spectra import checked

_SUM_ERROR = 1e-3  # float16 and float32 probabilities sum to 1 with an error below this


class Predictions(NamedTuple):
    """Holds the probabilities of a network's own classes, and the labels.

    Attributes:
        probabilities: Probability of each class of the network; rows sum to 1.
        labels: Class of each example.
    """

    probabilities: Float[np.ndarray, "examples source_classes"]
    labels: Int[np.ndarray, " examples"]

    @classmethod
    def of(
        cls, probabilities: Shaped[np.ndarray, "examples source_classes"], labels: Int[np.ndarray, " examples"]
    ) -> "Predictions":
        """Takes probabilities and labels, which stay as they are.

        Raises:
            JaxTransferError: As for `Examples.of`, or a row is not of probabilities that sum to 1.
        """
        probabilities, labels = checked(probabilities, labels, "Probabilities")
        sums = probabilities.sum(1)
        if (probabilities < 0).any() or (np.abs(sums - 1) > _SUM_ERROR).any():
            raise JaxTransferError("Probabilities are not negative, and those of an example sum to 1.")
        return cls(probabilities / sums[:, None], labels)

    def without(self, left_out: Bool[np.ndarray, " examples"]) -> "Predictions":
        """Returns the examples that are not left out."""
        return Predictions(self.probabilities[~left_out], self.labels[~left_out])


def nce(probabilities: Shaped[np.ndarray, "examples source_classes"], labels: Int[np.ndarray, " examples"]) -> float:
    """Computes the negative conditional entropy -H(label given the network's most probable class).

    Args:
        probabilities: Probability of each class of the network; rows sum to 1. Of equal ones the first counts.
        labels: Class of each example.

    Returns:
        The score in nats, -H(label) to 0.

    Raises:
        JaxTransferError: As for `logme`, or a row is not of probabilities that sum to 1.

    Source:
        Tran, Nguyen and Hassner, "Transferability and hardness of supervised classification tasks", ICCV 2019.
    """
    return negative_entropy(Predictions.of(probabilities, labels))


def leep(probabilities: Shaped[np.ndarray, "examples source_classes"], labels: Int[np.ndarray, " examples"]) -> float:
    """Computes LEEP, the mean log likelihood of the labels under sum_z p(label given z) p(z given example).

    p(y given z) is the share of label y in the probability that all examples give to class z of the network.

    Args:
        probabilities: Probability of each class of the network; rows sum to 1.
        labels: Class of each example.

    Returns:
        The score in nats, at most 0; at least -H(label).

    Raises:
        JaxTransferError: As for `logme`, or a row is not of probabilities that sum to 1.

    Source:
        Nguyen et al., arXiv 2002.12462. It is a mean of logarithms; some released code leaves out the logarithm.
    """
    return log_expected_prediction(Predictions.of(probabilities, labels))


def negative_entropy(predictions: Predictions) -> float:
    """Computes NCE of predictions."""
    chosen, labels = predictions.probabilities.argmax(1), predictions.labels
    _, joint = np.unique(np.stack([chosen, labels]), axis=1, return_counts=True)
    _, marginal = np.unique(chosen, return_counts=True)
    return float(((joint * np.log(joint)).sum() - (marginal * np.log(marginal)).sum()) / len(labels))


def log_expected_prediction(predictions: Predictions) -> float:
    """Computes LEEP of predictions."""
    probabilities = predictions.probabilities
    _, labels = np.unique(predictions.labels, return_inverse=True)
    joint = np.eye(labels.max() + 1)[labels].T @ probabilities
    conditional = joint / np.maximum(joint.sum(0), np.finfo(float).tiny)
    return float(np.log((conditional[labels] * probabilities).sum(1)).mean())
