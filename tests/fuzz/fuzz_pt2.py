"""Converts mutations of `.pt2` files and says which end otherwise than in a network or in one sentence.

    python tests/fuzz/fuzz_pt2.py MINUTES [SEED]

Each batch of cases runs in a process of its own, which may take 2 GB more than Python with its libraries, and 20 s for
a case. Inputs that fail are kept in the folder `fuzz-failures`; the texts of those that were mended are cases of
`tests/converters/test_hostile_programs.py`.
"""

import copy
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import jaxtransfer as jt
from jaxtransfer.aten import OPS
from jaxtransfer.converters import torch_export

_BATCH, _SECONDS, _BYTES = 20, 20, 2 * 2**30
_FAILURES = Path("fuzz-failures")


class _Regions(nn.Module):
    """Has a region without gradients, an attention and an upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 2, 2)
        self.norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.convolution(x))
        with torch.no_grad():
            y = F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0, mode="bilinear")
        tokens = (x + y).flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0][:, 1:]


def _programs() -> Iterator[bytes]:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    for module, images in ((plain, 2), (_Regions(), 2), (plain, 1)):
        shapes = ({0: torch.export.Dim.DYNAMIC},) if images > 1 else None
        exported = torch.export.export(module.eval(), (torch.zeros(images, 3, 8, 8),), dynamic_shapes=shapes)
        stream = io.BytesIO()
        torch.export.save(exported, stream)
        yield stream.getvalue()


_SYMBOL = "Symbol('s77', positive=True, integer=True)"
_VALUES = [
    None, True, -1, 0, 1, 3, 10**9, 2**62, 2**63 - 1, 10**30, 1.5, 1e308, float("inf"), float("nan"), "", "x", "../x",
    [], {}, [1], {"as_int": 10**9}, {"as_ints": [10**6, 10**6]}, {"as_float": 1e39}, {"as_none": True}, "s77",
    {"as_tensor": {"name": "input"}}, {"as_bool": True}, {"as_string": "x"}, {"as_scalar_type": 99},
    {"as_expr": {"expr_str": _SYMBOL, "hint": None}},
]  # fmt: skip
_SIZES = [
    "Pow(Integer(9), Pow(Integer(9), Pow(Integer(9), Integer(9))))", f"Pow({_SYMBOL}, Integer(100000000))",
    f"Pow(Pow({_SYMBOL}, Integer(8)), Integer(8))", "Integer(" * 500 + "1" + ")" * 500, "9**9**9**9",
    f"Mod({_SYMBOL}, Integer(0))", f"FloorDiv(Integer(1), Add({_SYMBOL}, Mul(Integer(-1), {_SYMBOL})))",
    f"Max({', '.join(f'Symbol({name!r})' for name in map('s{}'.format, range(40)))})", "-" * 1000 + "1",
    "Integer(99999999999999999999)", "Float('1e999999999')", "Rational(Integer(1), Integer(0))", "", "(", "Integer",
    f"Eq({_SYMBOL}, Integer(2))", "Add()", "Pow()", f"Symbol({_SYMBOL})", "Symbol('s1', positive=True, negative=True)",
]  # fmt: skip


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in items for place in _places(value, (*path, key)))]


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _mutated_json(rng: random.Random, content: bytes) -> bytes:
    """JSON with one to four places deleted, replaced, copied from elsewhere, nested or repeated."""
    tree: Any = json.loads(content)
    for _ in range(rng.randint(1, 4)):
        places = _places(tree)[1:]
        if not places:
            break
        path = rng.choice(places)
        parent: Any = _at(tree, path[:-1])
        key: Any = path[-1]
        kind = rng.randrange(8)
        if key == "expr_str" and rng.random() < 0.7:
            parent[key] = rng.choice(_SIZES)
        elif key == "target" and rng.random() < 0.7:
            parent[key] = f"torch.ops.{rng.choice(sorted(OPS))}"
        elif kind == 0:
            del parent[key]
        elif kind == 1:
            parent[key] = copy.deepcopy(_at(tree, rng.choice(places)))
        elif kind == 2 and isinstance(parent, list):
            parent[int(key) : int(key)] = copy.deepcopy(parent) * rng.choice([1, 50])
        elif kind == 3 and isinstance(parent[key], int):
            parent[key] = rng.choice([-1, 0, 1, parent[key] + 1, 10**6, 10**9, 2**62, 10**25])
        elif kind == 4:
            for _ in range(rng.choice([5, 90, 3000])):
                parent[key] = [parent[key]]
            break  # the other changes go through all places one inside the other
        else:
            parent[key] = copy.deepcopy(rng.choice(_VALUES))
    try:
        return json.dumps(tree).encode()
    except RecursionError:
        return b"[" * 100_000


def _mutated_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes of which some are altered, removed or repeated."""
    altered = bytearray(content)
    for _ in range(rng.randint(1, 5)):
        start = rng.randrange(len(altered) + 1)
        stop = min(len(altered), start + rng.choice([1, 1, 4, 100]))
        altered[start:stop] = rng.choice([b"", rng.randbytes(stop - start), b"\xff" * 4, altered[start:stop] * 2])
    return bytes(altered[: rng.randrange(len(altered) + 1)] if rng.random() < 0.1 else altered)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A mutation of a file: of its bytes, of the members of its archive, or of their JSON."""
    if rng.random() < 0.15:
        return _mutated_bytes(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        members = {name: source.read(name) for name in source.namelist()}
    kind = rng.random()
    if kind < 0.6:
        name = next(name for name in members if name.endswith("models/model.json"))
        members[name] = _mutated_json(rng, members[name])
    elif kind < 0.8:
        ending = rng.choice(["weights_config.json", "constants_config.json"])
        name = next(name for name in members if name.endswith(ending))
        members[name] = _mutated_json(rng, members[name])
    else:
        name = rng.choice(sorted(members))
        change = rng.randrange(5)
        if change == 0:
            del members[name]
        elif change == 1:
            members[name] = members[rng.choice(sorted(members))]
        elif change == 2:
            members[name] = b""
        else:
            members[name] = _mutated_bytes(rng, members[name])
    target = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


def _convert(data: bytes, folder: Path) -> str:
    """Converts a file, and says how that ended."""
    file = folder / "case.pt2"
    file.write_bytes(data)
    try:
        torch_export.convert(file, jt.Zoo(folder / "zoo"), f"case{time.monotonic_ns()}")
    except jt.JaxTransferError as error:
        (sentence,) = str(error).splitlines() or [""]
        return "refused" if len(sentence) < 2500 else f"a sentence of {len(sentence)} characters"
    except BaseException:
        return traceback.format_exc()
    return "converted"


def _own_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _run_batch(programs: list[bytes], seed: int) -> dict[str, int]:
    """Runs a batch of cases in a process of its own, and keeps the inputs that fail."""
    counts: dict[str, int] = {}
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_AS, (_own_bytes() + _BYTES, _own_bytes() + _BYTES))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        warnings.simplefilter("error")
        with tempfile.TemporaryDirectory() as folder:
            for case in range(_BATCH):
                rng = random.Random(f"{seed} {case}")
                data = mutated(rng, rng.choice(programs))
                os.write(writing, b"begun\n")
                signal.alarm(_SECONDS)
                end = _convert(data, Path(folder))
                signal.alarm(0)
                if end not in ("converted", "refused"):
                    _FAILURES.mkdir(exist_ok=True)
                    (_FAILURES / f"{seed}-{case}.pt2").write_bytes(data)
                    (_FAILURES / f"{seed}-{case}.txt").write_text(end)
                    end = f"failed: {end.strip().splitlines()[-1][:150]}"
                os.write(writing, f"{end}\n".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        ends = [line.strip() for line in lines]
    _, status = os.waitpid(child, 0)
    for end in ends:
        if end != "begun":
            counts[end] = counts.get(end, 0) + 1
    if status:
        case = ends.count("begun") - 1
        rng = random.Random(f"{seed} {case}")
        _FAILURES.mkdir(exist_ok=True)
        (_FAILURES / f"{seed}-{case}.pt2").write_bytes(mutated(rng, rng.choice(programs)))
        counts[f"failed: the process ended with status {status} in {seed}-{case}"] = 1
    return counts


def main(minutes: float, seed: int) -> None:
    """Runs batches until the time is over, and prints how the cases ended."""
    programs, end = list(_programs()), time.monotonic() + 60 * minutes
    totals: dict[str, int] = {}
    while time.monotonic() < end:
        for what, count in _run_batch(programs, seed).items():
            totals[what] = totals.get(what, 0) + count
        seed += 1
    for what, count in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"{count:7} {what}")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
