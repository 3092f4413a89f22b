"""A zoo: a directory of networks, each an Orbax checkpoint beside a manifest that a person can read."""

import dataclasses
import importlib
import inspect
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.network import ApplyFn, Network, Storable, weights_hash
from jaxtransfer.preprocess import Preprocess, PreprocessFn

_FORMAT = 1
_MANIFEST, _WEIGHTS = "network.json", "weights"


class Zoo:
    """Networks in a directory, one folder each, loaded one at a time when they are asked for.

    A folder holds `network.json` (the manifest: architecture, preprocessing, shapes, hash and origin of the
    weights) and `weights/` (an Orbax checkpoint). A folder appears whole or not at all.

    A network's `apply` is stored by name, never as code: it has to be a function at the top level of a module,
    or an object with `to_json()` whose class has `from_json(config)`. Opening a network imports nothing but
    jaxtransfer itself; of other packages it uses what the program has imported already.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens the zoo at `path`; the directory is made when the first network is added.

        Raises:
            JaxTransferError: `path` is something other than a directory.
        """
        self.path = Path(path).absolute()
        if self.path.exists() and not self.path.is_dir():
            raise JaxTransferError(f"{path} is not a directory, so it cannot be a zoo.")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all networks, sorted."""
        return tuple(sorted(manifest.parent.name for manifest in self.path.glob(f"*/{_MANIFEST}")))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Network]:
        return (self[name] for name in self.names)

    def __contains__(self, name: str) -> bool:
        return (self.path / name / _MANIFEST).is_file()

    def manifest(self, name: str) -> dict[str, Any]:
        """The manifest of one network, as it stands in its `network.json`.

        Raises:
            JaxTransferError: There is no such network, or its manifest cannot be read.
        """
        if name not in self:
            known = ", ".join(self.names) or "none yet"
            raise JaxTransferError(f"The zoo {self.path} has no network {name!r}; it has: {known}.")
        file = self.path / name / _MANIFEST
        try:
            manifest = json.loads(file.read_text())
            if manifest["format"] != _FORMAT:
                raise JaxTransferError(
                    f"{file} has format {manifest['format']}, this version of jaxtransfer reads {_FORMAT}."
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, JaxTransferError):
                raise
            raise JaxTransferError(f"{file} is not a readable manifest; convert the network again.") from error
        return manifest

    def preprocess(self, name: str) -> Preprocess | None:
        """The preprocessing of one network, without loading its weights.

        Raises:
            JaxTransferError: As for `manifest`.
        """
        stored = self.manifest(name)["preprocess"]
        return _preprocess_from_json(stored) if stored else None

    def __getitem__(self, name: str) -> Network:
        """Loads one network.

        Raises:
            JaxTransferError: There is no such network, it is damaged or not what was added, or its function is not at
                hand.
        """
        manifest = self.manifest(name)
        try:
            apply = _apply_from_json(manifest["apply"])
            preprocess = self.preprocess(name)
            params = _restore(self.path / name / _WEIGHTS, manifest["params"])
        except JaxTransferError as error:
            raise JaxTransferError(f"Network {name!r} of the zoo {self.path}: {error}") from error
        except Exception as error:  # Orbax and TensorStore raise many kinds; all mean the same to a user.
            raise JaxTransferError(
                f"Network {name!r} of the zoo {self.path} is damaged; remove its folder and convert it again."
            ) from error
        if weights_hash(params) != manifest["weights_sha256"]:
            raise JaxTransferError(
                f"The weights of network {name!r} of the zoo {self.path} are not those it was added with; remove its "
                "folder and convert it again."
            )
        return Network(name, apply, params, preprocess)

    def add(self, network: Network, *, source: Mapping[str, Any] | None = None) -> None:
        """Writes a network into the zoo.

        Args:
            network: Its `apply` must be storable by name (see the class), its `params` nested dicts of arrays
                with string keys, its `preprocess` a `jaxtransfer.Preprocess` or None.
            source: Where the weights come from; anything JSON can hold.

        Raises:
            JaxTransferError: The zoo has a network of that name, or the network cannot be stored.
        """
        if network.name in self:
            raise JaxTransferError(f"The zoo {self.path} already has a network {network.name!r}.")
        params = _plain(network.params, network.name)
        manifest = {
            "format": _FORMAT,
            "name": network.name,
            "apply": _apply_to_json(network.apply),
            "preprocess": _preprocess_to_json(network.preprocess),
            "weights_sha256": weights_hash(params),
            "source": dict(source or {}),
            "params": _describe(params),
        }
        self.path.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed, so that a folder with the network's name is always whole.
        beside = Path(tempfile.mkdtemp(prefix=".adding-", dir=self.path))
        try:
            if jax.tree.leaves(params):  # Orbax refuses to save nothing
                ocp.save(str(beside / _WEIGHTS), params)
                # Orbax wants this file in object stores, and writes into it the path that is about to be renamed.
                (beside / _WEIGHTS / "commit_success.txt").write_text("Written as a whole.\n")
            (beside / _MANIFEST).write_text(json.dumps(manifest, indent=1))
            beside.chmod(0o755)
            beside.rename(self.path / network.name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _restore(path: Path, description: PyTree) -> PyTree:
    if not jax.tree.leaves(description):
        return description
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf["shape"], np.dtype(leaf["dtype"]), sharding=sharding),
        description,
        is_leaf=_is_description,
    )
    return ocp.load(str(path), abstract)


def _describe(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}, params)


def _is_description(node: Any) -> bool:
    return isinstance(node, dict) and set(node) == {"shape", "dtype"} and isinstance(node["shape"], list)


def _plain(params: PyTree, name: str) -> PyTree:
    """`params` with every leaf a NumPy array, or an error when they are not nested dicts with string keys."""
    if isinstance(params, Mapping) and all(isinstance(key, str) for key in params):
        return {key: _plain(value, name) for key, value in params.items()}
    if isinstance(params, np.ndarray | jax.Array):
        return np.asarray(params)
    raise JaxTransferError(
        f"The params of network {name!r} must be nested dicts of arrays with string keys to be stored in a zoo, "
        f"but hold a {type(params).__name__} (flax.nnx.to_pure_dict helps for Flax NNX)."
    )


def _apply_to_json(apply: ApplyFn) -> dict[str, Any]:
    owner: Any
    if inspect.isfunction(apply):
        owner, config = apply, None
    elif isinstance(apply, Storable):
        owner, config = type(apply), apply.to_json()
    else:
        raise JaxTransferError(f"{apply!r} cannot be stored in a zoo: make it a function at the top level of a module.")
    name = f"{owner.__module__}:{owner.__qualname__}"
    if "<" in name:
        raise JaxTransferError(
            f"The function {name} cannot be stored in a zoo because it cannot be found by name: "
            "move it to the top level of a module."
        )
    return {"name": name} if config is None else {"name": name, "config": config}


def _apply_from_json(stored: Mapping[str, Any]) -> ApplyFn:
    module_name, _, qualname = stored["name"].partition(":")
    if module_name.split(".")[0] == "jaxtransfer":
        importlib.import_module(module_name)
    if module_name not in sys.modules:
        raise JaxTransferError(f"its function is {stored['name']}: import {module_name} before you open it.")
    found: Any = sys.modules[module_name]
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise JaxTransferError(f"its function {stored['name']} does not exist any more.")
    apply: Any = found
    return apply.from_json(stored["config"]) if "config" in stored else apply


def _preprocess_to_json(preprocess: PreprocessFn | None) -> dict[str, Any] | None:
    if preprocess is None:
        return None
    if not isinstance(preprocess, Preprocess):
        raise JaxTransferError(f"{preprocess!r} cannot be stored in a zoo: use jaxtransfer.Preprocess.")
    return dataclasses.asdict(preprocess)


def _preprocess_from_json(stored: Mapping[str, Any]) -> Preprocess:
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
    return Preprocess(**values)
