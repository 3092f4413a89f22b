"""Writes the tables and heat maps of a run of tasks x networks."""

from collections.abc import Callable
from pathlib import Path

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.figures import heat_map


def write_tables(out: Path, affinity: Affinity, title: Callable[[str], str]) -> None:
    """Saves results of tasks x networks, and draws a heat map `affinity_<method>.png` for each method.

    Args:
        out: The run directory.
        affinity: The results.
        title: Returns the title of a method's heat map.
    """
    affinity.save(out)
    for method in affinity.methods:
        heat_map(
            affinity[method],
            affinity.sources,
            out / f"affinity_{method}.png",
            title(method),
            targets=affinity.targets,
            quantity=affinity.measure(method).name,
        )
