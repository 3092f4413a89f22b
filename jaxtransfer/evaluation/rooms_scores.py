"""Says which measure predicts transfer best on Rooms: it is shown first, with the number that says why."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtransfer import files

FILE = Path(__file__).with_suffix(".csv")
RANDOM = "random order"


class RoomsScore(NamedTuple):
    """How well a measure predicts transfer between the 22 networks of Rooms, from 1,000 images of rooms.

    Attributes:
        p5: Share of the five sources that transfer best to a target that are among its five nearest; mean over targets.
        spearman: Rank correlation of a target's sources with their measured transfer; mean over targets.
    """

    p5: float
    spearman: float


@functools.cache
def rooms_scores() -> dict[str, RoomsScore]:
    """Returns the score of every method that was scored and of a random order, sorted by rank correlation, best first.

    `python -m benchmarks.rooms scores` takes them from `benchmarks/results/rooms_evaluation.csv`.
    """
    rows = [(row["method"], RoomsScore(float(row["p5"]), float(row["spearman"]))) for row in files.read_records(FILE)]
    return dict(sorted(rows, key=lambda row: row[1].spearman, reverse=True))


def best_first(methods: Sequence[str]) -> tuple[str, ...]:
    """Sorts methods by their scores on Rooms; those without a score come last, in the order given."""
    scores = [*rooms_scores()]
    return tuple(sorted(methods, key=lambda method: scores.index(method) if method in scores else len(scores)))


def reason_for_first(methods: Sequence[str]) -> str | None:
    """Says in one sentence why the first of `best_first` comes first; None where no method has a score."""
    scores = rooms_scores()
    known = [method for method in best_first(methods) if method in scores]
    if not known:
        return None
    best, (first, *others) = next(iter(scores)), known
    found = f"finds {percent(scores[first].p5)} of a target's five best sources"
    rest = [] if first == best else [f"{best} {percent(scores[best].p5)}"]
    rest.append(f"a random order {percent(scores[RANDOM].p5)}")
    if not others:
        return f"On Rooms {first} {found}, {', '.join(rest)}."
    low, high = (percent(extreme(scores[method].p5 for method in others)) for extreme in (min, max))
    name = others[0] if len(others) == 1 else "the other methods here"
    which = "best" if first == best else "best of these"
    return (
        f"{first} comes first because it predicts transfer {which} on Rooms (rank correlation "
        f"{scores[first].spearman:.2f}): it {found}, {name} "
        f"{low if low == high else f'{low} to {high}'}, {', '.join(rest)}."
    )


def percent(share: float) -> str:
    """Writes a share as a whole number of per cent."""
    return f"{100 * share:.0f} %"
