"""Converts the files of the `visualpriors` release to networks in a zoo."""

import hashlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax import traverse_util

from jaxtransfer import taskonomy
from jaxtransfer.converters.download import parse_name
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.zoo import Zoo

# From Flax's names of leaves to PyTorch's; kernels and scales are both called weight.
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def convert(weights_dir: str | Path, zoo: Zoo, on_progress: Callable[[int, int, str], None] | None = None) -> list[str]:
    """Adds the networks of the release files in a directory to a zoo, one network per task.

    Nothing is added before all files have been read and checked. A task that the zoo already holds from the same
    files is skipped, so an interrupted conversion resumes.

    Args:
        weights_dir: Directory with `{task}_encoder-{sha256}.pth`, and for some of the tasks
            `{task}_decoder-{sha256}.pth`; files with other endings are ignored. A task may have either of its names;
            its network gets the name in Song et al. and the params `{"encoder": ..., "decoder": ...}`.
        zoo: The zoo that receives the networks.
        on_progress: Called with the number of finished steps, the number of all steps (a check and a conversion of
            every file), and the current task.

    Returns:
        The names of the networks that were added.

    Raises:
        JaxTransferError: There are no release files, a file has another form of name, a task has two encoders or a
            decoder only, the zoo has a task from other files, or a file does not have the SHA-256 in its name, does
            not consist of tensors, or has missing, extra, misshaped or non-finite entries.
    """
    tasks = {task: files for task, files in _release_files(Path(weights_dir)).items() if not _is_done(task, files, zoo)}
    done, total = 0, 2 * sum(map(len, tasks.values()))

    def params_of(task: str) -> dict[str, Any]:
        nonlocal done
        params = {}
        for part, file in tasks[task].items():
            params[part] = _read(file, part)
            done += 1
            if on_progress is not None:
                on_progress(done, total, task)
        return params

    for task in tasks:
        params_of(task)
    for task, files in tasks.items():
        network = Network(task, taskonomy.encode, params_of(task), taskonomy.TASKS[task].preprocess)
        zoo.add(network, source={"release": "visualpriors", "sha256": _hashes(files)})
    return list(tasks)


def _release_files(directory: Path) -> dict[str, dict[str, Path]]:
    """Finds the files of every task by part (`encoder` or `decoder`), in the order of `taskonomy.TASKS`."""
    if not directory.is_dir():
        raise JaxTransferError(f"{directory} is not a directory; name the directory that holds the .pth files.")
    by_task: dict[str, dict[str, Path]] = {}
    for file in sorted(directory.glob("*.pth")):
        task, part, _ = parse_name(file.name)
        other = by_task.setdefault(task, {}).setdefault(part, file)
        if other != file:
            raise JaxTransferError(f"{other} and {file.name} are both the {part} of {task}: move one of them away.")
    if not by_task:
        raise JaxTransferError(
            f"{directory} holds no .pth files; fetch them with: jaxtransfer download taskonomy {directory}"
        )
    for task, files in by_task.items():
        if "encoder" not in files:
            raise JaxTransferError(
                f"{files['decoder']} is a decoder without its encoder; fetch that with: "
                f"jaxtransfer download taskonomy {directory} --task {task}"
            )
    return {
        task: {part: by_task[task][part] for part in ("encoder", "decoder") if part in by_task[task]}
        for task in taskonomy.TASKS
        if task in by_task
    }


def _is_done(task: str, files: Mapping[str, Path], zoo: Zoo) -> bool:
    if task not in zoo:
        return False
    if zoo.manifest(task)["source"].get("sha256") == _hashes(files):
        return True
    raise JaxTransferError(
        f"The zoo {zoo.path} already has a network {task!r}, made from other files than {files['encoder']} and its "
        "decoder, if any: remove the network's folder, or convert into another zoo."
    )


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    return {part: parse_name(file.name).sha256 for part, file in files.items()}


def _read(file: Path, part: str) -> dict[str, Any]:
    """Reads the params in a release file."""
    with file.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != parse_name(file.name).sha256:
            raise JaxTransferError(
                f"{file} does not have the SHA-256 in its name, so it is incomplete or damaged; "
                "remove it and download it again."
            )
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise JaxTransferError(
            f"{file} holds something other than tensors, which could run code when opened, so it was not opened; "
            "use the file of the release."
        ) from error
    except Exception as error:  # PyTorch raises many types; all mean the same to a user.
        raise JaxTransferError(f"{file} is not a readable PyTorch file; use the file of the release.") from error
    if isinstance(tensors, Mapping) and "state_dict" in tensors:
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping):
        raise JaxTransferError(f"{file} holds no state dict; use the file of the release.")
    try:
        return _to_params(tensors, part)
    except JaxTransferError as error:
        raise JaxTransferError(f"{file} does not fit the {part} of Taskonomy: {error}") from error


def _to_params(tensors: Mapping[Any, Any], part: str) -> dict[str, Any]:
    expected = _expected(tensors, part)
    counters = {name.replace("running_mean", "num_batches_tracked") for name in expected}
    if missing := expected.keys() - tensors.keys():
        raise JaxTransferError(f"it lacks {_list(missing)}.")
    if extra := tensors.keys() - expected.keys() - counters:
        raise JaxTransferError(f"it has unknown entries: {_list(extra)}.")
    params = {path: _to_flax(tensors[name], name, shape) for name, (path, shape) in expected.items()}
    return traverse_util.unflatten_dict(params)


def _expected(tensors: Mapping[Any, Any], part: str) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Maps PyTorch's name of every entry to its path and shape in Flax."""
    if part == "encoder":
        module, channels = taskonomy.Encoder, _size(tensors, "conv1.weight", 1)
    elif "fc0.weight" in tensors:
        module, channels = taskonomy.FullyConnectedDecoder, _size(tensors, "fc2.weight", 0)
    else:
        module, channels = taskonomy.ConvolutionalDecoder, _size(tensors, "decoder_output.0.weight", 0)
    _, shapes = taskonomy.skeleton(module, channels)
    expected = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        path = tuple(str(key.key) for key in keys)
        expected[".".join((*path[:-1], _LEAVES.get(path[-1], path[-1])))] = path, leaf.shape
    return expected


def _size(tensors: Mapping[Any, Any], name: str, axis: int) -> int:
    """Returns the length of an axis of an entry, or 1 if it does not exist, which is reported later."""
    shape = getattr(tensors.get(name), "shape", ())
    return max(1, shape[axis]) if len(shape) > axis else 1


def _to_flax(tensor: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Converts an entry to Flax's layout: [out, in, h, w] becomes [h, w, in, out]; vectors stay unchanged."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
        raise JaxTransferError(f"{name} is not an array of floating-point numbers.")
    torch_shape = (*shape[:-3:-1], *shape[:-2])
    # A 1x1 convolution is a linear layer here.
    written = (*torch_shape, 1, 1) if tensor.ndim == 4 and len(torch_shape) == 2 else torch_shape
    if tuple(tensor.shape) != written:
        raise JaxTransferError(f"{name} has shape {tuple(tensor.shape)}, not {written}.")
    array = tensor.detach().to(torch.float32).numpy().reshape(torch_shape)
    if not np.isfinite(array).all():
        raise JaxTransferError(f"{name} has values that are not finite.")
    if name.endswith("running_var") and (array < 0).any():
        raise JaxTransferError(f"{name} has negative variances.")
    return np.ascontiguousarray(array.transpose(*range(2, array.ndim), 1, 0) if array.ndim > 1 else array)


def _list(names: set[Any]) -> str:
    shown = sorted(map(str, names))
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
