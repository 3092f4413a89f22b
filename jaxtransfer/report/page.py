"""The report of a run: one page that opens from disk, and its figures as files."""

import base64
import functools
import io
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxtransfer import figures
from jaxtransfer.attribution.diagnostics import describe_fault, in_sentences
from jaxtransfer.attribution.maps import METHODS
from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.data.probe import read_images
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.evaluation.confidence import certain_ranking
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.retrieval import Quantity
from jaxtransfer.evaluation.tree import TaskTree, task_tree
from jaxtransfer.figures import OTHER
from jaxtransfer.files import atomic_directory, atomic_write
from jaxtransfer.points.store import Point, Points
from jaxtransfer.runs.affinity import affinity_of, evaluate, finished_record
from jaxtransfer.runs.gradient_results import read_control
from jaxtransfer.runs.record import Record

# The name of a figure, and what draws it to `path`.
Drawing = tuple[str, Callable[..., None]]

_PAGE = 20  # networks on one page of a figure
_LISTED = 200  # of what was skipped; the rest is in run.json
_LARGE, _SMALL = 128, 64  # pixels a side of the maps in the gallery
_LARGE_STRIPS = 80
_COLOURS = 64


def write_report(
    directory: str | Path,
    *,
    oracle: Oracle | None = None,
    groups: Mapping[str, str] | None = None,
    relevant: int = 5,
    photos: int = 6,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Writes `report.html` and the folder `figures` into the directory of a finished run.

    The page holds all it shows. `figures` is made anew, each figure as PNG and SVG. Nothing is replaced before the
    new files are whole.

    Args:
        directory: The run, of attribution maps or of principal gradients.
        oracle: Measured transfer to compare the rankings with; None: no curves.
        groups: The groups of networks by name; None: no groups. Names that are not in the run are passed over.
        relevant: How many of a target's sources are relevant.
        photos: How many probe images the gallery shows.
        progress: Called with figures done, figures to do and the name of the next.

    Returns:
        The page.

    Raises:
        JaxTransferError: `directory` holds no finished run, or one that has nothing in common with the oracle.
        OSError: Something cannot be written.
    """
    directory = Path(directory)
    record = finished_record(directory)
    affinity = affinity_of(directory, record)
    named = None if groups is None else {name: groups.get(name, OTHER) for name in affinity.names}
    trees = {method: _tree(affinity, method) for method in affinity.methods}
    scored = None if oracle is None else _Scored(affinity, oracle, relevant)
    gallery = _Gallery(directory, record, affinity, photos)

    drawings = [*_drawings(affinity, trees, named), *gallery.drawings()]
    if scored is not None:
        drawings.append(scored.drawing())
    with atomic_directory(directory / "figures") as folder:
        for done, (name, draw) in enumerate(drawings):
            if progress is not None:
                progress(done, len(drawings), name)
            draw(path=folder / f"{name}.png", svg=True)
        inline = {file.stem: _inline_svg(file) for stem in ("tree", "curves") for file in folder.glob(f"{stem}*.svg")}
        names = sorted(file.name for file in folder.iterdir())
    page = _page(directory, record, affinity, trees, named, gallery, scored, inline, names)
    with atomic_write(directory / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return directory / "report.html"


def _tree(affinity: Affinity, method: str) -> TaskTree | None:
    """The tree of the networks whose affinities are all known; None where they are fewer than three."""
    known = affinity.complete(method)
    return task_tree(known, method=method) if len(known.names) > 2 else None


def _order(affinity: Affinity, tree: TaskTree | None) -> list[int]:
    """Indices of the networks in the order of the tree, then those that are not in it."""
    ordered = () if tree is None else tree.ordered
    return [
        affinity.names.index(name) for name in (*ordered, *(each for each in affinity.names if each not in ordered))
    ]


class _Words:
    """How the values of a run are spoken of."""

    def __init__(self, method: str) -> None:
        self.sign = -1 if method == "gap" else 1
        self.quantity = method if method in ("gap", "alignment") else "affinity"
        self.by = "" if method in ("gap", "alignment") else f" by {method}"


def _drawings(
    affinity: Affinity, trees: Mapping[str, TaskTree | None], groups: Mapping[str, str] | None
) -> Iterator[Drawing]:
    """Heat map, tree and ranked sources of every method."""
    for method in affinity.methods:
        words = _Words(method)
        order = _order(affinity, tree := trees[method])
        yield (
            f"heat_map_{method}",
            functools.partial(
                figures.heat_map,
                words.sign * affinity[method][np.ix_(order, order)],
                [affinity.names[i] for i in order],
                title=f"{words.quantity.capitalize()}{words.by}{', in the order of the tree' if tree else ''}",
                quantity=words.quantity,
                smaller_is_nearer=words.sign < 0,
                groups=groups,
            ),
        )
        if tree is not None:
            title = f"Task similarity tree{words.by}"
            yield f"tree_{method}", functools.partial(figures.tree, tree, title=title, groups=groups)
        pages = list(_pages(affinity.names))
        for page, targets in pages:
            rankings = {
                target: [
                    (name, words.sign * value, error) for name, value, error in affinity.rank(target, method=method)
                ]
                for target in targets
            }
            nearer = "smaller is nearer" if words.sign < 0 else "larger is nearer"
            best = "" if len(affinity.names) <= _PAGE + 1 else ", the ten best"
            title = f"Sources{words.by}{best} ({words.quantity} ± standard error, {nearer}){_of(page, len(pages))}"
            drawing = functools.partial(figures.ranked_sources, rankings, title=title)
            yield f"sources_{method}{_number(page, len(pages))}", drawing


def _pages(names: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    for page, start in enumerate(range(0, len(names), _PAGE), 1):
        yield page, names[start : start + _PAGE]


def _number(page: int, pages: int) -> str:
    return f"_{page:0{len(str(pages))}}" if pages > 1 else ""


def _of(page: int, pages: int) -> str:
    return f", page {page} of {pages}" if pages > 1 else ""


class _Scored:
    """How a run's rankings agree with an oracle."""

    def __init__(self, affinity: Affinity, oracle: Oracle, relevant: int) -> None:
        self._found = {method: evaluate(affinity, oracle, method, relevant) for method in affinity.methods}
        self._curve = next(iter(self._found.values())).curve
        self.name = oracle.name
        self.relevant = relevant
        self.targets = self._curve.targets

    def drawing(self) -> Drawing:
        """The curves."""
        title = f"Against {self.name}, {len(self.targets)} targets"
        curves = {method: each.curve for method, each in self._found.items()}
        bands = {method: each.bands for method, each in self._found.items()}
        return "curves", functools.partial(figures.retrieval_curves, curves, title=title, bands=bands)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of what the curves say at some K."""
        wanted: list[tuple[Quantity, int]] = [("precision", 1), ("precision", 5), ("recall", 5), ("recall", 10)]
        columns = [each for each in wanted if each[1] <= len(self._curve.hits)]
        rows = []
        for method, each in self._found.items():
            shares = []
            for quantity, k in columns:
                share, band = each.shares(quantity, k)
                shares.append(f"{share:.3f}" if band is None else f"{share:.3f} ({band[0]:.2f} to {band[1]:.2f})")
            mean = each.mean_correlation("spearman")
            rows.append([method, *shares, "unknown" if math.isnan(mean) else f"{mean:.3f}"])
        chance = [f"{getattr(self._curve, f'random_{quantity}')[k - 1]:.3f}" for quantity, k in columns]
        header = ["method", *(f"{quantity[0].upper()}@{k}" for quantity, k in columns), "mean Spearman"]
        return header, [*rows, ["random order", *chance, "0.000"]]


class _Gallery:
    """Attribution maps of some probe images, or the reason why there are none."""

    def __init__(self, directory: Path, record: Record, affinity: Affinity, photos: int) -> None:
        self.maps: dict[str, dict[str, Float[np.ndarray, "photos size size"]]] = {}
        self.photos: UInt8[np.ndarray, "photos size size 3"] | None = None
        self.names: list[str] = []
        self.remarks: list[str] = []
        methods = [method for method in affinity.methods if method in METHODS]
        probe = record.get("probe")
        if not methods or probe is None:
            self.remarks.append("The methods of this run make no attribution maps.")
            return
        if record["settings"].get("sketch") is not None:
            self.remarks.append("Of attribution maps only sketches were kept, so none are shown.")
            return
        chosen = np.unique(np.linspace(0, len(probe["images"]) - 1, photos).round().astype(int))
        self.names = [probe["images"][i] for i in chosen]
        large = probe["size"][0] > _SMALL and len(methods) * len(affinity.names) <= _LARGE_STRIPS
        size = _LARGE if large else _SMALL
        place = record.get("points", "points")
        points = Points(place if "://" in place else directory / place)
        try:
            for method in methods:
                self.maps[method] = {
                    name: np.stack([_shown(points.open(name, method), i, size) for i in chosen])
                    for name in affinity.names
                }
        except (OSError, ValueError, IndexError):
            self.maps = {}
            self.remarks.append("The attribution maps of this run are not kept with it any more, so none are shown.")
            return
        try:
            self.photos = read_images(probe["folder"], self.names, size=probe["size"][0])
            self.photos = np.stack([np.asarray(Image.fromarray(photo).resize((size, size))) for photo in self.photos])
        except JaxTransferError:
            self.remarks.append("The probe photos are not where the run found them, so they are not shown.")

    def drawings(self) -> Iterator[Drawing]:
        """The pages of every method."""
        for method, maps in self.maps.items():
            pages = list(_pages(list(maps)))
            for page, names in pages:
                title = f"Attribution maps by {method}{_of(page, len(pages))}"
                shown = {name: maps[name] for name in names}
                drawing = functools.partial(figures.gallery, shown, self.photos, title=title)
                yield f"gallery_{method}{_number(page, len(pages))}", drawing

    def data(self) -> dict[str, Any] | None:
        """Photos and maps as strips, one image for each network and method."""
        if not self.maps:
            return None
        return {
            "photos": None
            if self.photos is None
            else _image(Image.fromarray(np.concatenate(list(self.photos), axis=1)), "JPEG"),
            "names": self.names,
            "size": next(iter(next(iter(self.maps.values())).values())).shape[1],
            "strips": {
                method: [_image(_map_strip(row), "PNG") for row in maps.values()] for method, maps in self.maps.items()
            },
        }


def _shown(point: Point, image: int, size: int) -> Float[np.ndarray, "size size"]:
    """One map as it is shown: averaged to the size of the gallery, then scaled."""
    values = point[image]
    small = Image.fromarray(np.where(np.isfinite(values), values, 0)).resize((size, size), Image.Resampling.BOX)
    return figures.scaled_map(np.asarray(small)).astype(np.float32)


def _map_strip(maps: Float[np.ndarray, "photos size size"]) -> Image.Image:
    """Maps side by side in 33 colours, which makes their file half as large as all colours would."""
    steps = Image.fromarray(np.concatenate([np.rint(16 * each + 16).astype(np.uint8) for each in maps], axis=1))
    steps.putpalette(figures.signed_colours(np.linspace(-1, 1, 33)).tobytes())
    return steps


def _image(image: Image.Image, form: str) -> str:
    """An image as a data URI."""
    stream = io.BytesIO()
    image.save(stream, form, **({"quality": 88} if form == "JPEG" else {"optimize": True}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _inline_svg(file: Path) -> str:
    """An SVG file as an element of the page: without a background, in the colour of the page's text."""
    text = file.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: _in_page(tag[0], f"{file.stem}-"), text)
    attributes = 'class="figure" fill="currentColor" stroke-linejoin="round" aria-hidden="true"'
    return text.replace("<svg ", f"<svg {attributes} ", 1)


def _in_page(tag: str, prefix: str) -> str:
    tag = tag.replace("#000000", "currentColor").replace("fill: #ffffff", "fill: none")
    for before in (' id="', 'href="#', "url(#"):  # ids are shared by all figures of a page
        tag = tag.replace(before, before + prefix)
    return tag


def _page(
    directory: Path,
    record: Record,
    affinity: Affinity,
    trees: Mapping[str, TaskTree | None],
    groups: Mapping[str, str] | None,
    gallery: _Gallery,
    scored: _Scored | None,
    inline: Mapping[str, str],
    files: Sequence[str],
) -> str:
    pge = record["kind"] == "pge"
    data = {
        "names": affinity.names,
        "faults": [
            "; ".join(describe_fault(fault) for fault in affinity.faults.get(name, ())) for name in affinity.names
        ],
        "groups": None if groups is None else [groups[name] for name in affinity.names],
        "colours": {} if groups is None else figures.group_colours(groups.values()),
        "scale": figures.value_colours(_COLOURS),
        "counted": "restarts" if pge else "images",
        "methods": [_method(affinity, method, trees[method]) for method in affinity.methods],
        "gallery": gallery.data(),
        "control": _control(directory) if pge else [],
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        # Nothing in a name may end the element that holds the data.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        run=Path(os.path.abspath(directory)).name,
        names=affinity.names,
        noun="task" if pge else "network",
        faults=in_sentences(affinity.faults),
        methods=affinity.methods,
        pge=pge,
        facts=_facts(record, affinity),
        trees={
            method: {
                "svg": inline.get(f"tree_{method}"),
                "left_out": [] if tree is None else [name for name in affinity.names if name not in tree.names],
            }
            for method, tree in trees.items()
        },
        scored=scored,
        curves=inline.get("curves"),
        gallery=gallery,
        colour_bar=", ".join(
            "rgb({} {} {})".format(*colour) for colour in figures.signed_colours(np.linspace(-1, 1, 21))
        ),
        remarks=record.get("remarks") or [],
        provenance=_provenance(record),
        hashes=_hashes(record),
        skipped=_skipped(record),
        unusable=_unusable(record),
        listed=_LISTED,
        groups=groups,
        files=files,
        starts=record["starts"],
    )


def _method(affinity: Affinity, method: str, tree: TaskTree | None) -> dict[str, Any]:
    """What the page needs of a method; every ranked source is [index, value, error, above the next, more images]."""
    words = _Words(method)
    places = {name: i for i, name in enumerate(affinity.names)}
    counts = affinity.counts(method)
    off_diagonal = counts[~np.eye(len(counts), dtype=bool)].reshape(len(counts), -1)
    unusable = [network for network, _ in affinity.unusable[method]]
    return {
        "name": method,
        "quantity": words.quantity,
        "sign": words.sign,
        "tree": tree is not None,
        "order": _order(affinity, tree),
        "ranked": [
            [
                [
                    places[each.name],
                    _short(words.sign * each.affinity, 6),
                    _short(each.stderr, 4),
                    _short(each.above_next, 4),
                    each.more_images,
                ]
                for each in certain_ranking(affinity, name, method=method)
            ]
            for name in affinity.names
        ],
        "counts": off_diagonal.min(axis=1, initial=int(counts.max(initial=0))).tolist(),
        "unusable": [unusable.count(name) for name in affinity.names],
    }


def _short(value: float | None, digits: int) -> float | None:
    """A number with so many digits; what is not finite is not known."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def _facts(record: Record, affinity: Affinity) -> list[str]:
    """What the run is of, in a few words each."""
    count = len(affinity.names)
    if record["kind"] == "pge":
        first = [f"{count} task{'s' if count > 1 else ''}", f"backbone {record['settings'].get('backbone', 'unknown')}"]
    else:
        first = [f"{count} networks"]
        if "probe" in record:
            first.append(f"{len(record['probe']['images'])} probe images")
        first.append(affinity.similarity)
    return [*first, *([str(record["finished"])[:10]] if record["finished"] else [])]


def _provenance(record: Record) -> list[tuple[str, str]]:
    """Names and values, from the last start."""
    start = record["starts"][-1]
    rows = [
        ("command", shlex.join(start["command"])),
        ("finished", record["finished"]),
        ("device", start["device"]),
        ("platform", start["platform"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in start["versions"].items())),
    ]
    rows += [
        (name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in record["settings"].items()
    ]
    if record.get("form"):
        rows.append(("form of gap", record["form"]))
    if "probe" in record:
        probe = record["probe"]
        rows.append(("probe images", f"{len(probe['images'])} in {probe['folder']}, {probe['size'][0]} pixels a side"))
    if "zoo" in record:
        rows.append(("zoo", record["zoo"]))
    return rows


def _hashes(record: Record) -> list[tuple[str, str]]:
    """SHA-256 of everything the run was made of."""
    probe = [("all probe images", record["probe"]["sha256"])] if "probe" in record else []
    networks = [(name, each["weights_sha256"]) for name, each in record.get("networks", {}).items()]
    return [*probe, *networks, *((name, each["sha256"]) for name, each in record.get("datasets", {}).items())]


def _skipped(record: Record) -> list[tuple[str, str]]:
    """Files and classes that were not used, with the reason."""
    found = [tuple(pair) for pair in record.get("probe", {}).get("skipped", [])]
    for name, dataset in record.get("datasets", {}).items():
        found += [(f"{name}: {file}", reason) for file, reason in dataset["skipped"]]
        found += [(f"{name}: class {each}", f"only {count} images") for each, count in dataset["left_out"]]
    return found


def _unusable(record: Record) -> list[tuple[str, str, str]]:
    """Method, network and image of maps without a direction."""
    return [(method, *pair) for method, pairs in (record.get("unusable") or {}).items() for pair in pairs]


def _control(directory: Path) -> list[dict[str, str]]:
    """What every task rests on, as the page shows it."""
    rows = []
    for row in read_control(directory):
        known = {name: float(value) for name, value in row.items() if name != "task" and _is_number(value)}
        distance, error = (known.get(f"squared_distance_{end}") for end in ("to_control", "stderr"))
        rows.append(
            {
                "task": row["task"],
                "reads": row["reads_labels"] or "not known",
                "blind": row.get("label_blind", ""),
                "distance": "" if distance is None else f"{distance:.3g}",
                "error": "" if error is None else f"{error:.2g}",
                "signal": f"{known['signal_to_noise']:.3g}" if "signal_to_noise" in known else "",
                "restarts": row["restarts"],
                "needed": row["restarts_needed"],
            }
        )
    return rows


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or "nan"))
    except ValueError:
        return False
