"""What a run was made of, what it left out, and what its control says: the texts of the report's tables."""

import math
import shlex
from pathlib import Path
from typing import Any

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.runs.gradient_results import read_control
from jaxtransfer.runs.record import Record


def headline_facts(record: Record, affinity: Affinity) -> list[str]:
    """Returns the facts beside the page's title, a few words each."""
    count = len(affinity.sources)
    if not affinity.square:
        tasks = len(affinity.targets)
        facts = [f"{tasks} task{'s' if tasks > 1 else ''}", f"{count} network{'s' if count > 1 else ''}"]
    elif record["kind"] == "pge":
        facts = [f"{count} task{'s' if count > 1 else ''}", f"backbone {record['settings'].get('backbone', 'unknown')}"]
    else:
        facts = [f"{count} networks"]
        if "probe" in record:
            facts.append(f"{len(record['probe']['images'])} probe images")
        facts.append(affinity.similarity)
    return [*facts, *([str(record["finished"])[:10]] if record["finished"] else [])]


def provenance_rows(record: Record) -> list[tuple[str, str]]:
    """Returns (name, value) of all that describes the run; command, device and versions are those of its last start."""
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


def hash_rows(record: Record) -> list[tuple[str, str]]:
    """Returns (name, SHA-256) of the images, the networks and the data sets."""
    probe = [("all probe images", record["probe"]["sha256"])] if "probe" in record else []
    networks = [(name, network["weights_sha256"]) for name, network in record.get("networks", {}).items()]
    datasets = [(name, dataset["sha256"]) for name, dataset in _datasets(record).items()]
    return [*probe, *networks, *datasets]


def skipped_rows(record: Record) -> list[tuple[str, str]]:
    """Returns (file, class or column of labels, reason) of what was not used."""
    rows = [tuple(pair) for pair in record.get("probe", {}).get("skipped", [])]
    for name, dataset in _datasets(record).items():
        rows += [(f"{name}: {file}", reason) for file, reason in dataset["skipped"]]
        if dataset.get("kind", "classes") == "classes":
            rows += [(f"{name}: class {label}", f"only {count} images") for label, count in dataset["left_out"]]
        else:
            rows += [(f"{name}: {column}", "all its labels are equal") for column, _ in dataset["left_out"]]
    return rows


def _datasets(record: Record) -> dict[str, dict[str, Any]]:
    """Returns what a record says of the labelled data sets of a run of principal gradients or of scores."""
    return record.get("datasets", {}) | record.get("tasks", {})


def unusable_rows(record: Record) -> list[tuple[str, str, str]]:
    """Returns (method, network, image) of the maps that have no direction."""
    return [(method, *pair) for method, pairs in (record.get("unusable") or {}).items() for pair in pairs]


def control_rows(directory: Path) -> list[dict[str, str]]:
    """Returns the rows of `control.csv` as the page shows them."""
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
