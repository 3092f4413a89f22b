"""The settings that scores depend on. JAX is imported only to check them, so that `--help` can show the defaults."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtransfer.errors import JaxTransferError

if TYPE_CHECKING:
    from jaxtransfer.attribution.precision import Precision

ALL = ("all",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Holds the settings that scores depend on, besides the networks and the tasks.

    Attributes:
        measures: One or several of `MEASURES`; a single name is made a tuple. "all" stands for all that allow the
            labels, and that the networks have a head for.
        layers: Names of the outputs of the networks whose features are used; None: all outputs but those of a head.
        precision: Precision of matrix products in the networks' passes: "float32", "tf32" or "bfloat16".

    Raises:
        JaxTransferError: A setting has no such value.

    Examples:
        >>> ScoreOptions(measures="ridge").measures
        ('ridge',)
    """

    measures: Sequence[str] = ("ridge",)
    layers: Sequence[str] | None = None
    precision: "Precision" = "float32"

    def __post_init__(self) -> None:
        """Checks every setting."""
        from jaxtransfer.arguments import check_name, checked_names
        from jaxtransfer.attribution.precision import PRECISIONS
        from jaxtransfer.scores.measures import MEASURES

        measures = checked_names("measures", self.measures, "ridge")
        if not measures:
            raise JaxTransferError(f"No measure is named; there are: {', '.join(MEASURES)}.")
        for measure in measures:
            if measures != ALL:
                check_name("measure", measure, (*MEASURES,))
        object.__setattr__(self, "measures", measures)
        if self.layers is not None:
            object.__setattr__(self, "layers", checked_names("layers", self.layers, "blocks.3"))
        check_name("precision", self.precision, PRECISIONS)

    def as_settings(self) -> dict[str, Any]:
        """Returns the fields as `run.json` holds them."""
        return dataclasses.asdict(self)
