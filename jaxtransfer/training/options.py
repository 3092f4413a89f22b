"""The settings that measured transfer depends on. JAX is imported only to check them."""

import dataclasses
from typing import Any, Literal, get_args

from jaxtransfer.errors import JaxTransferError

Protocol = Literal["frozen", "finetune"]

_MAX_SEEDS, _MAX_STEPS = 1000, 10_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferOptions:
    """Holds the settings that measured transfer depends on, besides the networks and the tasks.

    Attributes:
        protocol: "frozen": a linear readout is trained on features; "finetune": all weights are trained.
        seeds: Number of trainings for each fold and learning rate; 1 to 1000.
        folds: Number of folds of the cross-validation; 3 or more.
        steps: Number of optimiser steps of each training; None: the protocol's, 400 for "frozen", 300 for "finetune".

    Raises:
        JaxTransferError: A setting has no such value.

    Examples:
        >>> TransferOptions(seeds=2).protocol
        'frozen'
    """

    protocol: Protocol = "frozen"
    seeds: int = 3
    folds: int = 5
    steps: int | None = None

    def __post_init__(self) -> None:
        """Checks every setting."""
        from jaxtransfer.arguments import check_name

        check_name("protocol", self.protocol, get_args(Protocol))
        for name, least, most in (("seeds", 1, _MAX_SEEDS), ("folds", 3, None), ("steps", 1, _MAX_STEPS)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                why = "; one is held out, one chooses step and learning rate" if name == "folds" else ""
                raise JaxTransferError(f"The number of {name} must be {least} or more{why}, not {value!r}.")
            if value is not None and most is not None and value > most:
                raise JaxTransferError(f"The number of {name} may be up to {most:,}, not {value:,}.")

    def as_settings(self) -> dict[str, Any]:
        """Returns the fields as `run.json` holds them."""
        return dataclasses.asdict(self)
