"""Damages ONNX files at random and reads them: each must become a network or end in a `JaxTransferError`.

    python benchmarks/fuzz_onnx.py FILE.onnx... --seconds 600

Bytes of the file are changed, or fields of its messages: numbers, names and sizes are replaced, nodes, attributes and
weights are removed, repeated and exchanged. Prints every other error with the seed that leads to it.
"""

import argparse
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from onnx import ModelProto

import jaxtransfer as jt

_NUMBERS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 5, 255, 2**31 - 1, 2**40, 2**63 - 1)
_TEXTS = ("", "x", "y", "Relu", "Loop", "com.microsoft", "../x", "\x00")


def damage_bytes(data: bytes, chance: random.Random) -> bytes:
    """Changes, removes or repeats a few bytes."""
    damaged = bytearray(data)
    for _ in range(chance.randrange(1, 8)):
        at, length = chance.randrange(len(damaged) + 1), chance.choice((1, 1, 1, 4, 50))
        damaged[at : at + chance.choice((0, length))] = chance.randbytes(chance.choice((0, length)))
    return bytes(damaged)


def _messages(message: Message, depth: int = 0) -> list[Message]:
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is not None and depth < 12:
            for child in value if hasattr(value, "__len__") else [value]:
                found += _messages(child, depth + 1)
    return found


def _other(value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool | int):
        return chance.choice(_NUMBERS)
    if isinstance(value, float):
        return chance.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    return chance.choice(_TEXTS) if isinstance(value, str) else chance.choice((b"", value[:-1], value + b"\x00"))


def damage_fields(data: bytes, chance: random.Random) -> bytes:
    """Changes, removes, repeats or exchanges a few fields of the messages of a model."""
    model = ModelProto.FromString(data)
    for _ in range(chance.randrange(1, 5)):
        message = chance.choice([m for m in _messages(model) if m.ListFields()])
        field, value = chance.choice(message.ListFields())
        try:
            if hasattr(value, "__delitem__") and not isinstance(value, bytes | str):
                at, other = chance.randrange(len(value)), chance.randrange(len(value))
                action = chance.randrange(3)
                if action == 0:
                    del value[at]
                elif action == 1:
                    value.append(value[at])
                elif field.message_type is not None:
                    value[at].CopyFrom(value[other])
                else:
                    value[at] = _other(value[at], chance)
            elif field.message_type is None:
                setattr(message, field.name, _other(value, chance))
            else:
                message.ClearField(field.name)
        except (TypeError, ValueError, OverflowError):
            continue  # the field cannot hold it
    return model.SerializeToString()


def main() -> int:
    """Reads damaged files for as long as was asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    originals = [file.read_bytes() for file in options.files]
    outcomes: Counter[str] = Counter()
    slowest, start, seed = (0.0, 0), time.monotonic(), options.seed
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "net.onnx")
        while time.monotonic() - start < options.seconds:
            chance = random.Random(seed)
            data = chance.choice(originals)
            file.write_bytes(chance.choice((damage_bytes, damage_fields))(data, chance))
            began = time.monotonic()
            try:
                jt.from_onnx(file, name="net", representation=chance.choice((None, "deepest")))
                outcomes["read"] += 1
            except jt.JaxTransferError:
                outcomes["refused"] += 1
            except Exception:
                outcomes["another error"] += 1
                print(f"seed {seed}:\n{traceback.format_exc(limit=-3)}", flush=True)
            slowest = max(slowest, (time.monotonic() - began, seed))
            seed += 1
    print(f"seeds {options.seed} to {seed - 1}: {dict(outcomes)}; the slowest, {slowest[1]}, took {slowest[0]:.1f} s")
    return 1 if outcomes["another error"] else 0


if __name__ == "__main__":
    sys.exit(main())
