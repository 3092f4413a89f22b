"""Architectures in PyTorch of networks whose packages hold weights alone; images are RGB, [n, 3, h, w]."""

import io
from collections.abc import Callable, Mapping
from itertools import pairwise

import h5py
import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

_HED_BLOCKS = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and OpenCV do


class EfficientNetLite(nn.Module):
    """The last feature map of an EfficientNet-Lite."""

    def __init__(self, name: str, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.network = EfficientNet.from_name(name)
        self.network.load_state_dict(weights)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the map, [n, units, h, w]."""
        return self.network.extract_features(images)


class Grey(nn.Module):
    """Gives a network for grey images the luma of RGB images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.luma = nn.Buffer(torch.tensor(_GREY).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns what the network returns for [n, 1, h, w]."""
        return self.network((images * self.luma).sum(1, keepdim=True))


def efficientnet_lite0(content: bytes) -> nn.Module:
    """EfficientNet-Lite0."""
    return EfficientNetLite("efficientnet-lite0", _state_dict(content))


def efficientnet_lite1(content: bytes) -> nn.Module:
    """EfficientNet-Lite1."""
    return EfficientNetLite("efficientnet-lite1", _state_dict(content))


def efficientnet_lite2(content: bytes) -> nn.Module:
    """EfficientNet-Lite2."""
    return EfficientNetLite("efficientnet-lite2", _state_dict(content))


def hed_encoder(content: bytes) -> nn.Module:
    """The VGG-16 of an edge detector (Xie & Tu, ICCV 2015) up to the last ReLU, without its side outputs."""
    layers: list[nn.Module] = []
    with h5py.File(io.BytesIO(content)) as weights:
        for block, channels in enumerate(_HED_BLOCKS):
            layers += [nn.MaxPool2d(2, ceil_mode=True)] * (block > 0)
            for number, (inputs, outputs) in enumerate(pairwise(channels)):
                name = f"block{block + 1}/layers/conv2d" + (f"_{number}" if number else "")
                kernel, bias = (torch.from_numpy(np.asarray(weights[f"{name}/vars/{i}"])) for i in range(2))
                convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
                # Keras has [h, w, in, out], and this network was trained on BGR.
                kernel = kernel.flip(2) if inputs == 3 else kernel
                convolution.load_state_dict({"weight": kernel.permute(3, 2, 0, 1).contiguous(), "bias": bias})
                layers += [convolution, nn.ReLU()]
    return nn.Sequential(*layers)


def craft_encoder(content: bytes) -> nn.Module:
    """The VGG-16 with batch normalisation of a text detector (Baek et al., CVPR 2019), without its decoder."""
    layers: list[nn.Module] = []
    for number, channels in enumerate(((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512))):
        layers += [nn.MaxPool2d(2)] * (number > 0)
        for inputs, outputs in pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    layers += [nn.MaxPool2d(2)]
    for last in (False, True):
        layers += [nn.Conv2d(512, 512, 3, padding=1), nn.BatchNorm2d(512)] + [nn.ReLU()] * (not last)
    network = nn.Sequential(
        *layers,
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
        nn.Conv2d(1024, 1024, 1),
    )
    return _loaded(network, content, "module.basenet.")


def crnn_encoder(content: bytes) -> nn.Module:
    """The convolutions of a text recogniser (Shi et al., 2017), without its recurrent layers."""
    network = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 1))),
        *(nn.Conv2d(128, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(), nn.MaxPool2d((2, 1))),
        *(nn.Conv2d(256, 256, 2), nn.ReLU()),
    )
    return Grey(_loaded(network, content, "module.FeatureExtraction."))


def build(name: str, content: bytes) -> nn.Module:
    """Builds a network by the name of its function, in inference mode."""
    return ARCHITECTURES[name](content).eval()


ARCHITECTURES: Mapping[str, Callable[[bytes], nn.Module]] = {
    "efficientnet_lite0": efficientnet_lite0,
    "efficientnet_lite1": efficientnet_lite1,
    "efficientnet_lite2": efficientnet_lite2,
    "hed_encoder": hed_encoder,
    "craft_encoder": craft_encoder,
    "crnn_encoder": crnn_encoder,
}
"""The functions that build networks from the content of a file of weights."""


def _state_dict(content: bytes) -> dict[str, Tensor]:
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


def _loaded(network: nn.Module, content: bytes, prefix: str) -> nn.Module:
    """Loads the tensors whose names begin with a prefix, which lie in the order of the layers."""
    tensors = [value for name, value in _state_dict(content).items() if name.startswith(prefix)]
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
    return network
