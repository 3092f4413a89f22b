"""The options of runs of principal gradients. JAX is imported only to check them, so that `--help` can show them."""

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args

from jaxtransfer.errors import JaxTransferError

if TYPE_CHECKING:
    from jaxtransfer.pge.gap import Form

GradientMeasure = Literal["gap", "alignment"]
BackboneName = Literal["conv4", "resnet12", "resnet18", "resnet50"]
LossName = Literal["prototypical", "random-head", "squared-error"]

_DEFAULT_HEADS = 16
_MAX_RESTARTS, _MAX_HEADS = 10**9, 10_000
_GROUPS: dict[GradientMeasure, int] = {"gap": 16, "alignment": 32}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PGEOptions:
    """Holds the options that the comparison of tasks by their gradients depends on, besides the tasks.

    Attributes:
        measure: "gap" between expected gradients, or "alignment" of gradients at the same fresh weights.
        backbone: Name of the backbone, see `jaxtransfer.backbone`.
        size: Height and width in pixels to which images are resized; >= 1.
        loss: "prototypical" or "random-head" for classes, "squared-error" for numbers and dense targets. None:
            "prototypical" for classes, "squared-error" for the others.
        form: Form of the gap, see `jaxtransfer.gap`; an alignment does not use it.
        restarts: Number of restarts (fresh weights with a fresh batch); or "auto": until the signal-to-noise reaches
            `tolerance`.
        tolerance: Signal-to-noise, a ratio of powers, at which "auto" stops; > 0.
        cap: Number of restarts at which "auto" gives up.
        ways: Number of classes in an episode; >= 2.
        shots: Support images per class, whose mean features are the class's prototype; >= 1.
        queries: Query images per class, on which the loss is evaluated; >= 1.
        batch_size: Number of images in a batch, for losses with a random head; >= 1.
        heads: Number of pairs of mirrored heads, for losses with a random head; >= 1. None: 16.
        symmetry: Whether principal gradients are averaged over the backbone's exchangeable units.
        control: Whether every task is also computed with permuted labels.
        limit: Largest number of images to use of each data set, taken from its classes in turn; None: all.
        seed: Seed of all random numbers; 0 to 2**32 - 1.

    Raises:
        JaxTransferError: An option is out of range, or there is no measure, backbone, loss or form of this name.

    Examples:
        >>> PGEOptions(restarts=64).ways
        5
        >>> PGEOptions(restarts=15)
        Traceback (most recent call last):
        jaxtransfer.errors.JaxTransferError: 16 groups need 16 restarts or more, not 15; ask for more restarts.
    """

    measure: GradientMeasure = "gap"
    backbone: BackboneName = "conv4"
    size: int = 32
    loss: LossName | None = None
    form: "Form" = "pge"
    restarts: int | Literal["auto"] = "auto"
    tolerance: float = 10
    cap: int = 100_000
    ways: int = 5
    shots: int = 5
    queries: int = 16
    batch_size: int = 64
    heads: int | None = None
    symmetry: bool = True
    control: bool = True
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every option that can be checked without the tasks."""
        from jaxtransfer.arguments import check_name
        from jaxtransfer.pge.backbones import BACKBONES
        from jaxtransfer.pge.gap import FORMS
        from jaxtransfer.pge.restarts import check_counts

        for kind, name, known in [
            ("measure", self.measure, get_args(GradientMeasure)),
            ("backbone", self.backbone, BACKBONES),
            ("loss", self.loss or "prototypical", get_args(LossName)),
            ("form of gap", self.form, FORMS),
        ]:
            check_name(kind, name, known)
        check_counts(self.cap if isinstance(self.restarts, str) else self.restarts, self.groups, 1)
        if not 0 < self.tolerance < math.inf:
            raise JaxTransferError(f"The tolerance is a signal-to-noise, larger than 0, not {self.tolerance}.")
        if not 0 <= self.seed < 2**32:
            raise JaxTransferError(f"The seed must be 0 or more and smaller than 2**32, not {self.seed}.")
        if self.may_use_episodes and min(self.ways - 1, self.shots, self.queries) < 1:
            raise JaxTransferError("An episode needs two or more ways, and one or more shots and queries.")
        if not self.may_use_episodes and self.batch_size < 1:
            raise JaxTransferError(f"A batch needs one image or more, not {self.batch_size}.")
        if self.heads is not None and self.heads < 1:
            raise JaxTransferError(f"There must be one pair of heads or more, not {self.heads}.")
        restarts = self.cap if self.restarts == "auto" else self.restarts
        for name, value, most in (("restarts", restarts, _MAX_RESTARTS), ("pairs of heads", self.heads, _MAX_HEADS)):
            if value is not None and value > most:
                raise JaxTransferError(f"There may be up to {most:,} {name}, not {value:,}.")

    @property
    def groups(self) -> int:
        """Number of groups of restarts over which standard errors are jackknifed."""
        return _GROUPS[self.measure]

    @property
    def may_use_episodes(self) -> bool:
        """Whether tasks of classes are computed from few-shot episodes."""
        return self.loss in (None, "prototypical")

    @property
    def pairs_of_heads(self) -> int:
        """Number of pairs of mirrored heads where a loss has a random head."""
        return _DEFAULT_HEADS if self.heads is None else self.heads

    def as_settings(self, losses: Iterable[LossName], channels: int) -> dict[str, Any]:
        """Returns what `run.json` and the files of gradients record: the options that the results depend on.

        Options that these losses or this measure do not use are left out, so that other values of them make no other
        run; `form` and `limit` are left out too, since a gap of another form follows from the same gradients, and the
        data have hashes of their own.

        Args:
            losses: Losses of the tasks.
            channels: Number of channels of the images.
        """
        losses = {*losses}
        settings = {
            "measure": self.measure,
            "backbone": self.backbone,
            "size": self.size,
            "channels": channels,
            "loss": " and ".join(sorted(losses)),
            "restarts": self.restarts,
            "groups": self.groups,
            "control": self.control,
            "seed": self.seed,
            "precision": "float32, matrix products at the highest precision",
        }
        if self.restarts == "auto":
            settings |= {"tolerance": self.tolerance, "cap": self.cap}
        if self.measure == "gap":
            settings |= {"symmetry": self.symmetry}
        if "prototypical" in losses:
            settings |= {"ways": self.ways, "shots": self.shots, "queries": self.queries}
        if losses != {"prototypical"}:
            settings |= {"batch_size": self.batch_size, "heads": self.pairs_of_heads}
        return settings
