"""Stores networks in a directory: Orbax checkpoints beside manifests that a person can read."""

import contextlib
import functools
import importlib
import json
import math
import operator
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp
from pydantic import AfterValidator, Field

from jaxtransfer.devices import host_memory
from jaxtransfer.errors import JaxTransferError, operating_system_error, unknown_name
from jaxtransfer.files import JsonObject, check_checkpoint_path, parse_json, read_json
from jaxtransfer.networks.exported import ExportedProgram
from jaxtransfer.networks.functions import FUNCTIONS, findable_name, function_named, is_registered, register
from jaxtransfer.networks.modules import ModuleFunction
from jaxtransfer.networks.network import ApplyFn, Network, Storable, is_key, is_name, weights_hash
from jaxtransfer.networks.outputs import describe_outputs
from jaxtransfer.networks.preprocess import Preprocess, PreprocessFn

_MANIFEST, _WEIGHTS, _PROGRAM = "network.json", "weights", "program.export"
_PARTIAL, _SECONDS_OF_LEFTOVERS = ".adding-", 24 * 3600

# What the names of the functions of modules begin with.
_MODULES = "jaxtransfer.networks.modules:"
# Marks in a manifest for containers and leaves that JSON does not have; no dict of weights holds a string.
_KIND, _INTEGERS, _TUPLE, _KEY = "kind", "dict with integer keys", "tuple", "PRNG key"

_Path = tuple[str, ...]
# Name in a checkpoint of weights that are a single array.
_SINGLE: _Path = ("params",)


class Zoo:
    """Stores networks in a directory, one folder per network, and loads them one by one on demand.

    A folder holds `network.json` (the manifest: architecture, preprocessing, what it returns, shapes, hash and origin
    of the weights), `weights/` (an Orbax checkpoint), and for a network of `Network.of` without a factory
    `program.export` (StableHLO). A folder appears whole or not at all.

    Any other network's `apply` is stored by name, never as code: it must be a function at the top level of a module,
    or an object with `to_json()` whose class has `from_json(config)`. Opening a network imports nothing but
    jaxtransfer itself. Besides the architectures of jaxtransfer, a network's function may be one that the program has
    registered (`jaxtransfer.register`) or added to a zoo itself, or one of the modules that it names; anything else
    is refused.

    Examples:
        >>> from jaxtransfer import rooms
        >>> zoo = jt.Zoo("zoo")
        >>> zoo.add(rooms.zoo()["curvature"], source={"copied from": "Rooms"})
        >>> zoo.names
        ('curvature',)
        >>> zoo["curvature"].preprocess == rooms.zoo()["curvature"].preprocess
        True
    """

    def __init__(self, path: str | Path, *, modules: Sequence[str] = ()) -> None:
        """Opens the zoo at `path`; the directory is created when the first network is added.

        Args:
            path: The directory.
            modules: Names of imported modules and packages whose functions the networks may use. Name only what you
                know to be harmless: a zoo can then have any function that they define called with its weights.

        Raises:
            JaxTransferError: `path` is something other than a directory, or has a backslash or a square bracket.
        """
        self.path = Path(path).absolute()
        if self.path.exists() and not self.path.is_dir():
            raise JaxTransferError(f"{path} is not a directory, so it cannot be a zoo.")
        check_checkpoint_path(self.path)
        self._modules = tuple(modules)

    @property
    def names(self) -> tuple[str, ...]:
        """Sorted names of all networks."""
        folders = (manifest.parent.name for manifest in self.path.glob(f"*/{_MANIFEST}"))
        return tuple(sorted(name for name in folders if is_name(name)))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Network]:
        return (self[name] for name in self.names)

    def __contains__(self, name: str) -> bool:
        return is_name(name) and (self.path / name / _MANIFEST).is_file()

    def manifest(self, name: str) -> dict[str, Any]:
        """Reads the manifest of a network, its `network.json`.

        Raises:
            JaxTransferError: The network does not exist, or its manifest is damaged.
            OSError: The manifest cannot be read.
        """
        if name not in self:
            raise unknown_name("network", name, self.names, where=f"in the zoo {self.path}")
        return read_json(self.path / name / _MANIFEST, _Manifest)

    def preprocess(self, name: str) -> Preprocess | None:
        """Reads the preprocessing of a network without its weights.

        Raises:
            JaxTransferError: The network does not exist, or its manifest cannot be read.
        """
        stored = self.manifest(name)["preprocess"]
        return _preprocess_from_json(stored) if stored else None

    def check_modules(self, manifests: Iterable[Mapping[str, Any]]) -> None:
        """Checks that the functions of networks are in modules that may be used, before any network is loaded.

        Args:
            manifests: The manifests of the networks.

        Raises:
            JaxTransferError: Some functions are not; the message names all modules that are needed.
        """
        functions = [(manifest["name"], name) for manifest in manifests for name in _functions_of(manifest["apply"])]
        if refused := [(network, function) for network, function in functions if not self._may_use(function)]:
            advice = _advice(function for _, function in refused)
            name, function = refused[0]
            raise JaxTransferError(f"Network {name!r} of the zoo {self.path} has the function {function}: {advice}.")

    def __getitem__(self, name: str) -> Network:
        """Loads a network.

        Raises:
            JaxTransferError: The network does not exist, is damaged, or was changed after it was added, or its
                function is not in a module that may be used.
            OSError: Its files cannot be read.
        """
        manifest = self.manifest(name)
        try:
            apply = self._apply(manifest["apply"], self.path / name)
            preprocess = self.preprocess(name)
            params = _restore(self.path / name / _WEIGHTS, manifest["params"])
        except JaxTransferError as error:
            raise JaxTransferError(f"Network {name!r} of the zoo {self.path}: {error}") from error
        except MemoryError as error:
            raise JaxTransferError(
                f"There is not enough memory for the weights of network {name!r} of the zoo {self.path}."
            ) from error
        except Exception as error:  # Orbax and TensorStore raise many types
            system = operating_system_error(error, self.path / name)
            if system and not isinstance(system, FileNotFoundError | NotADirectoryError):  # these are damage
                raise system from error
            raise JaxTransferError(
                f"Network {name!r} of the zoo {self.path} is damaged; remove its folder and add it again."
            ) from error
        if weights_hash(params) != manifest["weights_sha256"]:
            raise JaxTransferError(
                f"The weights of network {name!r} of the zoo {self.path} have changed since it was added; remove its "
                "folder and add it again."
            )
        return Network(name, apply, params, preprocess)

    def add(self, network: Network, *, source: Mapping[str, Any] | None = None) -> None:
        """Writes a network into the zoo.

        Args:
            network: Its `apply` must be storable by name (see the class). Its `params` may be nested dicts (with
                strings or integers as keys), lists and tuples of arrays, PRNG keys, Python numbers and None; a
                `flax.nnx.State` is restored as the dicts that `flax.nnx.to_pure_dict` makes of it, which
                `flax.nnx.merge` also accepts. Its `preprocess` must be a `jaxtransfer.Preprocess` or None.
            source: Origin of the weights, a dict that JSON can hold.

        Raises:
            JaxTransferError: The zoo already has a network of that name, or the network cannot be stored.
        """
        if network.name in self:
            raise JaxTransferError(f"The zoo {self.path} already has a network {network.name!r}.")
        try:
            arrays: dict[_Path, np.ndarray] = {}
            params = json.loads(json.dumps(_describe(network.params, (), arrays)))  # JSON has a single NaN
            names = Counter(".".join(path) for path in arrays)
            if names.total() > len(names):
                name = names.most_common(1)[0][0]
                raise JaxTransferError(f"its params hold two arrays that a checkpoint calls {name!r}; rename one.")
            apply = network.apply
            if isinstance(apply, ModuleFunction) and apply.factory is None:
                apply = ExportedProgram.of(apply, network.params, network.preprocess)
            manifest = {
                "format": 1,
                "name": network.name,
                "apply": _apply_to_json(apply),
                "preprocess": _preprocess_to_json(network.preprocess),
                "weights_sha256": weights_hash(_rebuild(params, (), lambda path, *_: arrays[path])),
                "source": dict(source or {}),
                "outputs": describe_outputs(network),
                "params": params,
            }
            text = json.dumps(manifest, indent=1)
            parse_json(text.encode(), _Manifest)  # so that what is added can be read
        except (ValueError, TypeError, RecursionError) as error:
            raise JaxTransferError(f"Network {network.name!r} cannot be stored in a zoo: {error}") from error
        self.path.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        # Written under another name and renamed, so that a folder with the network's name is always complete.
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.path))
        try:
            if saved := {path: array for path, array in arrays.items() if array.size}:
                context = ocp.Context()
                # Orbax would hold all compressed arrays in memory at once, and files would be hardly smaller.
                context.array.saving.use_compression = False
                with context:
                    ocp.save(str(partial / _WEIGHTS), _nested(saved))
                # Object stores need this file, and Orbax writes into it the path that is renamed below.
                (partial / _WEIGHTS / "commit_success.txt").write_text("Written as a whole.\n")
            if isinstance(apply, ExportedProgram):
                (partial / _PROGRAM).write_bytes(apply.content)
            (partial / _MANIFEST).write_text(text)
            partial.chmod(0o755)
            partial.rename(self.path / network.name)
            for function in _functions_of(manifest["apply"]):
                register(function_named(function))
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Removes what programs left that were killed while they added a network; younger folders may be in use."""
        for folder in self.path.glob(f"{_PARTIAL}*"):
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > _SECONDS_OF_LEFTOVERS:
                    shutil.rmtree(folder, ignore_errors=True)

    def _may_use(self, function: str) -> bool:
        """Whether a stored function is part of jaxtransfer, or the program has registered it or named its module."""
        module = function.partition(":")[0]
        if module.split(".")[0] == "jaxtransfer":
            return True  # `function_named` accepts only the functions in `FUNCTIONS`
        named = any(f"{module}.".startswith(f"{name}.") for name in self._modules)
        return is_registered(function) or (named and module in sys.modules)

    def _apply(self, stored: Mapping[str, Any], folder: Path) -> ApplyFn:
        """Looks up the function that a manifest names."""
        for name in _functions_of(stored):
            if not self._may_use(name):
                raise JaxTransferError(f"its function is {name}: {_advice([name])}.")
        name = stored["name"]
        if name in FUNCTIONS:
            importlib.import_module(FUNCTIONS[name].partition(":")[0])
        function = function_named(name)
        if function is None or isinstance(function, type) != ("config" in stored):
            raise JaxTransferError(f"its function {name} is not the function of a network, or no longer exists.")
        if "config" not in stored:
            return function
        config = stored["config"]
        return function.from_json(config if function is not ExportedProgram else {**config, "file": folder / _PROGRAM})


def _checked_preprocess(stored: dict[str, Any]) -> dict[str, Any]:
    try:
        _preprocess_from_json(stored)
    except TypeError:
        raise ValueError(f"should have the fields of a Preprocess, not {str(list(stored))[:100]}") from None
    except JaxTransferError as error:
        raise ValueError(f"cannot be used: {str(error).removesuffix('.')}") from error
    return stored


def _checked_params(description: Any) -> Any:
    """Checks that a manifest describes weights, and that they are not larger than the memory."""
    sizes = []

    def measure(_: _Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"the shape {shape}")
        if not (jnp.issubdtype(dtype, jnp.number) or dtype == np.bool):
            raise TypeError(f"the type {dtype}")
        sizes.append(math.prod(shape) * dtype.itemsize)

    try:
        _rebuild(description, (), measure)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"should describe weights, but there is this: {str(error)[:100]}") from None
    if sum(sizes) > (memory := host_memory()):
        raise ValueError(f"describes weights of {sum(sizes):,} bytes, but the memory has {memory:,} bytes")
    return description


class _Function(JsonObject):
    name: Annotated[str, Field(pattern=r"^[\w.:<>]*$", max_length=300)]


class _Output(JsonObject):
    kind: str
    shape: list[int]


class _Manifest(JsonObject):
    format: Literal[1]
    name: str
    apply: _Function
    preprocess: Annotated[dict[str, Any], AfterValidator(_checked_preprocess)] | None
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    outputs: dict[str, _Output] = {}  # noqa: RUF012  pydantic copies it
    params: Annotated[Any, AfterValidator(_checked_params)]


def _advice(functions: Iterable[str]) -> str:
    modules = sorted({name.partition(":")[0] for name in functions})
    return (
        "a zoo uses functions of other modules only if you name them: if you trust it, import "
        f"{' and '.join(modules)} and open it with modules={modules}, on the command line with "
        f"{' '.join(f'--import {module}' for module in modules)}"
    )


def _functions_of(stored: Mapping[str, Any]) -> list[str]:
    """Returns the names of a network's function, and of those that build and call its module."""
    of_module = stored["config"] if stored["name"].startswith(_MODULES) else {}
    return [stored["name"], *(of_module[key] for key in ("factory", "call") if key in of_module)]


def _restore(path: Path, description: PyTree) -> PyTree:
    """Loads the weights that a manifest describes."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    templates: dict[_Path, Any] = {}

    def expect(path: _Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if 0 not in shape:
            array = np.empty(shape, dtype)
            # 64-bit numbers that JAX would round stay NumPy arrays.
            exact = jnp.result_type(array) == dtype
            templates[path] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) if exact else array

    _rebuild(description, (), expect)
    # Compared first, since Orbax prints tracebacks of its own where they differ.
    stored = ocp.metadata(str(path)).metadata if templates else {}
    for key, template in templates.items() if stored is not None else ():
        if _at(stored, key).shape != template.shape:
            raise ValueError("the manifest describes other weights than there are")
    loaded = ocp.load(str(path), _nested(templates)) if templates else {}

    def take(path: _Path, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        return _at(loaded, path) if 0 not in shape else np.empty(shape, dtype)

    return _rebuild(description, (), take)


def _at(nested: Any, path: _Path) -> Any:
    """Returns the value at a path of what `_nested` made."""
    return functools.reduce(operator.getitem, path or _SINGLE, nested)


def _describe(node: Any, path: _Path, arrays: dict[_Path, np.ndarray]) -> Any:
    """Describes a tree of weights as JSON data, see `_rebuild`, and collects its arrays in `arrays`."""
    if isinstance(node, nnx.State | nnx.Variable):
        node = nnx.to_pure_dict(node) if isinstance(node, nnx.State) else node.get_value()
    if node is None or type(node) in (bool, int, float):
        return node
    if isinstance(node, Mapping) and all(isinstance(key, str) for key in node):
        return {key: _describe(value, (*path, key), arrays) for key, value in node.items()}
    if isinstance(node, Mapping) and all(type(key) is int for key in node):
        items = {str(key): _describe(value, (*path, str(key)), arrays) for key, value in node.items()}
        return {_KIND: _INTEGERS, "items": items}
    if type(node) in (list, tuple):
        items = [_describe(value, (*path, str(index)), arrays) for index, value in enumerate(node)]
        return items if type(node) is list else {_KIND: _TUPLE, "items": items}
    if not isinstance(node, np.ndarray | np.generic | jax.Array):
        where = f"at {'/'.join(path)}" if path else "at the top"
        raise JaxTransferError(
            f"its params hold a {type(node).__name__} {where}; a zoo takes dicts with strings or with integers as "
            "keys, lists, tuples, None, arrays, PRNG keys and Python numbers: pass jax.tree.leaves(params), and let "
            "the function rebuild the tree with jax.tree.unflatten."
        )
    array = arrays[path] = np.asarray(jax.random.key_data(node) if is_key(node) else node)
    description = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if is_key(node):
        description |= {_KIND: _KEY, "impl": str(jax.random.key_impl(node))}
    return description


def _rebuild(description: Any, path: _Path, array: Callable[[_Path, tuple[int, ...], np.dtype], Any]) -> Any:
    """Rebuilds the tree that `_describe` described.

    Args:
        description: The description of a tree or of a part of it.
        path: Path of this part in the whole tree.
        array: Returns the array at a path, of a shape and type.
    """
    if isinstance(description, list):
        return [_rebuild(item, (*path, str(index)), array) for index, item in enumerate(description)]
    if not isinstance(description, dict):
        return description
    kind = description.get(_KIND)
    if kind == _INTEGERS:
        return {int(key): _rebuild(item, (*path, key), array) for key, item in description["items"].items()}
    if kind == _TUPLE:
        return tuple(_rebuild(description["items"], path, array))
    if isinstance(description.get("dtype"), str):
        leaf = array(path, tuple(description["shape"]), np.dtype(description["dtype"]))
        return leaf if kind != _KEY or leaf is None else jax.random.wrap_key_data(leaf, impl=description["impl"])
    return {key: _rebuild(item, (*path, key), array) for key, item in description.items()}


def _nested(flat: Mapping[_Path, Any]) -> dict[str, Any]:
    """Nests values by their paths in dicts; a single array at the empty path is named `params`."""
    root: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path or _SINGLE
        functools.reduce(lambda node, folder: node.setdefault(folder, {}), folders, root)[name] = value
    return root


def _apply_to_json(apply: ApplyFn) -> dict[str, Any]:
    config = apply.to_json() if isinstance(apply, Storable) else None
    owner: Any = type(apply) if isinstance(apply, Storable) else apply
    name = findable_name(owner)
    return {"name": name} if config is None else {"name": name, "config": config}


def _preprocess_to_json(preprocess: PreprocessFn | None) -> dict[str, Any] | None:
    if preprocess is None:
        return None
    if not isinstance(preprocess, Preprocess):
        raise JaxTransferError(f"its preprocess is {preprocess!r}; use jaxtransfer.Preprocess.")
    return preprocess.fields()


def _preprocess_from_json(stored: Mapping[str, Any]) -> Preprocess:
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
    return Preprocess(**values)
