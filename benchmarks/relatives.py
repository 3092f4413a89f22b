"""Measures which similarities RSA, DEPARA, CKA and SVCCA give to unrelated networks, noisy and identical copies.

    python -m benchmarks.relatives

Run from the root of the checkout. Representations are independent standard normal numbers; a noisy copy adds noise of
the same variance. Prints the table of docs/representations.md: mean and standard deviation over unrelated pairs, mean
over noisy copies, and a star where the package warns.
"""

import argparse
import itertools
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxtransfer.comparison import representations as relatives
from jaxtransfer.comparison.representations import Comparison, Representations


def edges(representations: Representations) -> Comparison:
    """Computes DEPARA from its edges alone: the nodes are 0 and have almost no weight."""
    images = len(next(iter(representations.values())))
    nodes = np.zeros((images, len(representations) * (len(representations) - 1) // 2), np.float32)
    return relatives.depara(representations, nodes, edge_weight=1e6)


MEASURES: dict[str, Callable[[Representations], Comparison]] = {
    "rsa": relatives.rsa,
    "depara, edges": edges,
    "cka": relatives.cka,
    "cka_biased": relatives.cka_biased,
    "svcca": relatives.svcca,
}
_NETWORKS = 3  # besides a noisy copy of each, and an identical copy of the first


def measure(name: str, images: int, units: int, draws: int) -> str:
    """Computes a cell of the table.

    Raises:
        AssertionError: Identical networks do not have similarity 1.
    """
    unrelated, noisy, warned = [], [], False
    for draw in range(draws):
        rng = np.random.default_rng([draw, images, units])
        originals = {str(i): rng.normal(size=(images, units)) for i in range(_NETWORKS)}
        copies = {f"{i} with noise": x + rng.normal(size=x.shape) for i, x in originals.items()}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values = MEASURES[name](originals | copies | {"0 again": originals["0"]}).values
        warned |= bool(caught)
        np.testing.assert_allclose(values[0, -1], 1, atol=1e-6)
        for i, j in itertools.combinations(range(2 * _NETWORKS), 2):
            (noisy if j - i == _NETWORKS else unrelated).append(values[i, j])
    return f"{np.mean(unrelated):.3f} ± {np.std(unrelated):.3f}, {np.mean(noisy):.2f}{'*' if warned else ''}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[24, 100, 1000], help="numbers of images")
    parser.add_argument("--units", type=int, nargs="+", default=[64, 2000], help="numbers of units")
    parser.add_argument(
        "--draws", type=int, default=3, help="random draws for 1000 images; fewer images get proportionally more"
    )
    options = parser.parse_args(arguments)
    table = Table("measure", "units", *(f"{images} images" for images in options.images))
    for name in MEASURES:
        for units in options.units:
            cells = [measure(name, images, units, -(-options.draws * 1000 // images)) for images in options.images]
            table.add_row(name, str(units), *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
