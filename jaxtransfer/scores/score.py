"""The result of one measure for one network and task."""

from typing import NamedTuple

from jaxtyping import Float
from numpy import ndarray


class Score(NamedTuple):
    """Holds how well a network's features suit a task; larger is better.

    Attributes:
        value: The score.
        pseudo_values: Jackknife pseudo-value of each group of examples, see `statistics.pseudo_values`; their standard
            deviation divided by the root of their number is the standard error.
    """

    value: float
    pseudo_values: Float[ndarray, " groups"]
