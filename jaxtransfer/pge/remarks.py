"""Sentences on how far a gradient is resolved and whether it depends on the labels, for gaps and alignments alike."""

import math

from jaxtransfer.pge.statistics import Estimate


def unresolved(signal_to_noise: float, more_restarts: float | None) -> str:
    """Says what a signal-to-noise needs that was not reached.

    Args:
        signal_to_noise: The signal-to-noise that is asked for.
        more_restarts: About how many more restarts would reach it; None or infinite: no signal is visible yet.
    """
    known = more_restarts is not None and math.isfinite(more_restarts)
    more = f"about {more_restarts:.0f} more restarts" if known else "many more restarts"
    return f"Not resolved: a signal-to-noise of {signal_to_noise:g} needs {more}."


def label_dependence(distance: Estimate, *, depends: bool | None) -> str:
    """Says whether a gradient depends on the labels.

    Args:
        distance: Squared distance between the gradients with true and with permuted labels.
        depends: Whether that is more than its noise.
    """
    verdict = "depends on the labels" if depends else "cannot be distinguished from a gradient that ignores the labels"
    return (
        f"Permuting the labels moves the gradient by {distance.value:.3g} ± {distance.stderr:.2g} (squared distance): "
        f"it {verdict}."
    )
