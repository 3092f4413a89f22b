"""The schema of the record of a run, `run.json`: the fields that are read, which each command writes in part."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from jaxtransfer.defaults import MAX_SIDE
from jaxtransfer.files import JsonObject

_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
_Pairs = list[tuple[str, str]]


def _inside(name: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"should be a path inside the probe's folder, not {name!r}")
    return name


def _place(address: str) -> str:
    if "://" in address and not address.startswith(("gs://", "s3://")):
        raise ValueError(f"should be a directory, gs:// or s3://, not {address!r}")
    return address


class _Start(JsonObject):
    time: str
    command: list[str]
    device: str
    platform: str
    versions: dict[str, str]


class _Network(JsonObject):
    weights_sha256: str


class _Probe(JsonObject):
    folder: str
    size: tuple[_Side, _Side]
    sha256: str
    images: Annotated[list[Annotated[str, AfterValidator(_inside)]], Field(min_length=1)]
    skipped: _Pairs


class _Dataset(JsonObject):
    kind: str = "classes"
    sha256: str
    skipped: _Pairs
    left_out: list[tuple[Any, Any]]


class _Settings(JsonObject):
    methods: list[str] = Field([])
    measure: str | None = None
    sketch: int | None = None


class RunRecord(JsonObject):
    """Checks the record of a run of any command; records of the first version may lack the kind."""

    format: Literal[1]
    kind: Literal["affinity", "score", "transfer", "pge"] = "affinity"
    settings: _Settings
    starts: Annotated[list[_Start], Field(min_length=1)]
    finished: str | None
    zoo: str = ""
    networks: dict[str, _Network] = Field({})
    probe: _Probe | None = None
    points: Annotated[str, AfterValidator(_place)] = ""
    unusable: dict[str, _Pairs] | None = None
    faults: dict[str, list[str]] | None = None
    left_out: dict[str, str] = Field({})
    datasets: dict[str, _Dataset] = Field({})
    tasks: dict[str, _Dataset] = Field({})
    form: str | None = None
    remarks: list[str] | None = None
    processor_seconds_of_measures: float | None = None

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        """Checks what only some commands write."""
        if self.kind == "pge" and self.settings.measure not in ("gap", "alignment"):
            raise ValueError(f"its settings.measure should be 'gap' or 'alignment', not {self.settings.measure!r}")
        return self
