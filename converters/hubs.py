"""Converts networks by their names in timm, torchvision and Hugging Face transformers, with their preprocessing.

The hubs' own functions load the weights, so their caches, directories and settings for work without internet apply.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import inspect
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.export import ExportedProgram

from jaxtransfer.converters.layers import PRE_HEAD, Tokens, default_tokens, layers, output_names
from jaxtransfer.converters.torch_module import export, to_network
from jaxtransfer.errors import JaxTransferError, first_line
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.preprocess import Preprocess
from jaxtransfer.networks.zoo import Zoo

Hub = Literal["timm", "torchvision", "transformers"]


@dataclasses.dataclass(frozen=True)
class HubNetwork:
    """A network of a hub, ready to be exported.

    Attributes:
        module: The network, a function of images alone.
        preprocess: Its preprocessing.
        untrained: Names of weights that the hub does not have, so that they are random.
    """

    module: torch.nn.Module
    preprocess: Preprocess
    untrained: frozenset[str] = frozenset()


def convert(
    hub: Hub,
    names: Sequence[str],
    zoo: Zoo,
    *,
    representation: Sequence[str] = (),
    tokens: Tokens | None = None,
    random_weights: bool = False,
    name: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[list[str], list[str], dict[str, str]]:
    """Converts networks of a hub and adds them to a zoo; those that it already has are kept.

    Args:
        hub: The hub.
        names: Names of networks in the hub, or directories of networks.
        zoo: The zoo.
        representation: What the networks return, see `from_torch`; none: what goes into the head.
        tokens: What is kept of tokens, see `from_torch`; None: all, or what the hub's default asks for.
        random_weights: Whether the weights are freshly drawn, with a fixed seed, instead of loaded.
        name: Name of the network in the zoo, if there is only one; None: `zoo_name` of its name in the hub.
        progress: Called as `progress(done, total, name)`.

    Returns:
        Names in the zoo of networks that were added and of those that it already had, and the reasons why others were
        not added, by their names in the hub.

    Raises:
        JaxTransferError: There are several networks and one name.
        ModuleNotFoundError: The hub's package is not installed.
    """
    if name is not None and len(names) != 1:
        raise JaxTransferError(f"One network can be named {name!r}, but {len(names)} are given.")
    _import(hub)
    added, kept, failed = [], [], {}
    for number, hub_name in enumerate(names):
        if progress is not None:
            progress(number, len(names), hub_name)
        stored_name = name or zoo_name(hub_name, random_weights=random_weights)
        source = {
            "hub": hub,
            "name": hub_name,
            "representation": [*representation] or "default",
            "tokens": tokens or "default",
            "random_weights": random_weights,
        }
        try:
            if stored_name in zoo:
                stored = zoo.manifest(stored_name)["source"]
                if any(stored.get(key) != value for key, value in source.items()):
                    raise JaxTransferError(
                        f"The zoo {zoo.path} already has another network {stored_name!r}: choose a name, or remove "
                        "that one."
                    )
                kept.append(stored_name)
                continue
            network = load(
                hub, hub_name, stored_name, representation=representation, tokens=tokens, random_weights=random_weights
            )
            versions = {package: importlib.metadata.version(package) for package in (hub, "torch")}
            zoo.add(network, source=source | versions)
            added.append(stored_name)
        except JaxTransferError as error:
            failed[hub_name] = str(error)
    return added, kept, failed


def zoo_name(name: str, *, random_weights: bool = False) -> str:
    """Returns the name in a zoo of a network of a hub.

    Examples:
        >>> zoo_name("facebook/dinov2-small")
        'facebook--dinov2-small'
        >>> zoo_name("resnet18", random_weights=True)
        'resnet18-random'
    """
    path = name.removeprefix("local-dir:")
    name = Path(path).resolve().name if Path(path).is_dir() else name.removeprefix("hf_hub:").removeprefix("hf-hub:")
    return re.sub(r"[^A-Za-z0-9._+-]+", "--", name).lstrip("._+-") + "-random" * random_weights


def load(
    hub: Hub,
    hub_name: str,
    name: str,
    *,
    representation: Sequence[str] = (),
    tokens: Tokens | None = None,
    random_weights: bool = False,
) -> Network:
    """Converts a network of a hub and checks it against PyTorch; see `convert` and `from_torch`."""
    loaded, exported = _exported(hub, hub_name, random_weights, not representation)
    if hub == "torchvision":
        representation = representation or (PRE_HEAD,)
    elif hub == "transformers" and not representation:
        outputs = output_names(exported)
        pooled = "pooler_output" in outputs and not any("pooler" in weight for weight in loaded.untrained)
        representation = ("pooler_output",) if pooled else ("last_hidden_state",)
        tokens = tokens or default_tokens(exported, representation[0])
    network = to_network(exported, name, representation, tokens or "all", loaded.preprocess)
    if random := loaded.untrained & network.params.keys():
        raise JaxTransferError(
            f"{hub_name} does not come with the weights {', '.join(sorted(random)[:3])}, which this representation "
            "needs: choose another one."
        )
    return network


def layers_of(hub: Hub, name: str, *, random_weights: bool = False) -> dict[str, torch.Tensor]:
    """Returns the values of a network of a hub that can be its representation, see `layers.layers`."""
    _import(hub)
    return layers(_exported(hub, name, random_weights, pre_head=False)[1])


def _exported(hub: Hub, name: str, random_weights: bool, pre_head: bool) -> tuple[HubNetwork, ExportedProgram]:
    with _loading(hub, name):
        loaded = _LOADERS[hub](name, random_weights, pre_head)
        return loaded, export(loaded.module, torch.zeros(1, 3, *loaded.preprocess.size))


def _load_timm(name: str, random_weights: bool, pre_head: bool) -> HubNetwork:
    import timm
    from timm.data.config import resolve_model_data_config

    location = f"local-dir:{name}" if Path(name).is_dir() else name
    model: Any = timm.create_model(location, pretrained=not random_weights).float().eval()
    config = resolve_model_data_config(model)
    if config["input_size"][0] != 3:
        raise JaxTransferError(f"{name} takes images of {config['input_size'][0]} channels, not the 3 of RGB.")
    if pre_head:
        # On the module itself, so that its parts keep their paths.
        model.forward = lambda images: model.forward_head(model.forward_features(images), pre_logits=True)
    size = config["input_size"][1:]
    resize = [math.floor(side / config["crop_pct"]) for side in size]
    return HubNetwork(model, _preprocess(size, resize, config["interpolation"], config["mean"], config["std"]))


def _load_torchvision(name: str, random_weights: bool, pre_head: bool) -> HubNetwork:
    from torchvision import models

    weights: Any = models.get_model_weights(name)
    weights = weights.DEFAULT
    builder = models.get_model_builder(name)
    backbone = {"weights_backbone": None} if "weights_backbone" in inspect.signature(builder).parameters else {}
    model = builder(weights=None if random_weights else weights, **backbone).eval()
    config = weights.transforms()
    if not hasattr(config, "resize_size"):
        raise JaxTransferError(f"{name} is not a network of single images.")
    resize = _pair(config.resize_size)
    size = _pair(getattr(config, "crop_size", resize))
    return HubNetwork(model, _preprocess(size, resize, config.interpolation.value, config.mean, config.std))


def _load_transformers(name: str, random_weights: bool, pre_head: bool) -> HubNetwork:
    import transformers

    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(name)
    processor = transformers.AutoImageProcessor.from_pretrained(name).to_dict()
    if random_weights:
        model, missing = transformers.AutoModel.from_config(config), ()
    else:
        model, loading = transformers.AutoModel.from_pretrained(name, config=config, output_loading_info=True)
        missing = loading["missing_keys"]
    whole = model
    model: Any = getattr(whole, "vision_model", whole).float().eval()  # of networks of images and text
    prefix = "" if model is whole else "vision_model."
    forward, reverse = model.forward, processor.get("do_flip_channel_order")  # from RGB to BGR
    model.forward = lambda images: forward(pixel_values=images.flip(1) if reverse else images)
    untrained = frozenset(key.removeprefix(prefix) for key in missing)
    return HubNetwork(model, _preprocess_of_processor(processor), untrained)


_LOADERS: dict[Hub, Callable[[str, bool, bool], HubNetwork]] = {
    "timm": _load_timm,
    "torchvision": _load_torchvision,
    "transformers": _load_transformers,
}


def _preprocess_of_processor(config: Mapping[str, Any]) -> Preprocess:
    """Returns the preprocessing that an image processor of transformers describes."""
    size = resize = _pair(config["size"])
    if config.get("do_center_crop"):
        size = _pair(config["crop_size"])
    elif config.get("crop_pct") and size[0] < 384:  # as in ConvNeXt's processor
        resize = (int(size[0] / config["crop_pct"]),) * 2
    mean, std = (0.0,) * 3, (1.0,) * 3
    if config.get("do_normalize"):
        mean, std = config["image_mean"], config["image_std"]
    scale = 255 * config["rescale_factor"] if config.get("do_rescale", True) else 255
    interpolation = {1: "lanczos", 2: "bilinear", 3: "bicubic"}.get(int(config["resample"]), "nearest")
    return _preprocess(size, resize, interpolation, [m / scale for m in mean], [s / scale for s in std])


def _preprocess(
    size: Sequence[int], resize: Sequence[int], interpolation: str, mean: Sequence[float], std: Sequence[float]
) -> Preprocess:
    """Returns a preprocessing; where a hub distorts an image to a square, the largest square of it is taken."""
    method = {"bilinear": "linear", "bicubic": "cubic", "lanczos": "lanczos"}.get(interpolation)
    if method is None:
        raise JaxTransferError(f"its images are resized by {interpolation}, not by bilinear, bicubic or lanczos.")
    return Preprocess(
        (size[0], size[1]),
        tuple(map(float, mean)),
        tuple(map(float, std)),
        resize=None if [*resize] == [*size] else (resize[0], resize[1]),
        interpolation=method,
    )


def _pair(size: Any) -> tuple[int, int]:
    """Returns height and width of what a hub gives as a size: a number, one or two in a list, or a dict."""
    if isinstance(size, Mapping):
        given = [size.get("height"), size.get("width")] if size.get("height") else [size.get("shortest_edge")]
        if None in given:
            raise JaxTransferError(f"its images have the size {dict(size)}, which is not fixed.")
        size = given
    sides = [*size] if isinstance(size, Sequence) else [size]
    return sides[0], sides[-1]


@contextlib.contextmanager
def _loading(hub: Hub, name: str) -> Iterator[None]:
    """Makes errors of a hub sentences, silences its messages and fixes the seed of random weights."""
    logs = [logging.getLogger(package) for package in (hub, "huggingface_hub")]
    levels = [log.level for log in logs]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            for log in logs:
                log.setLevel(logging.ERROR)
            yield
        except JaxTransferError as error:
            raise JaxTransferError(f"{name}: {error}") from error
        except Exception as error:  # the hubs raise many types
            raise JaxTransferError(f"{hub} cannot load {name}: {first_line(error)}") from error
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)


def _import(hub: Hub) -> None:
    """Imports a hub's package, and torchvision before it, which timm needs and transformers uses if it is there."""
    try:
        _import_torchvision()
    except ModuleNotFoundError:
        if hub != "transformers":
            raise
    importlib.import_module(hub)


_operators: list[torch.library.Library] = []


def _import_torchvision() -> None:
    """Imports torchvision, also where its compiled operators are for a build of PyTorch for other devices.

    Without them it cannot be imported unless these two operators of object detection are declared.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _operators.append(torch.library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            _operators[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
