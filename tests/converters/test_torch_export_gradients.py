"""Converted PyTorch networks have the gradients that PyTorch computes, or are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import jaxtransfer as jt  # noqa: E402
from jaxtransfer.converters import torch_export  # noqa: E402
from support.helpers import quick_cases, quick_jit  # noqa: E402
from support.torch_modules import IMAGE, Attention, Function, channels_first, export, images, outputs, save, seeded  # noqa: E402


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

        result, ours = quick_jit(both)(jnp.asarray(np.moveaxis(x, 1, -1)))
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


@pytest.mark.parametrize(
    "name", quick_cases(DETACHED, "part", "detach", "enable_grad", "function", "view", "two outputs", "dropout")
)
def test_values_without_gradient(name):
    module = DETACHED[name]
    agrees(module if isinstance(module, nn.Module) else Function(module), normal(2, 3, 6, 6))


def test_values_without_gradient_from_a_file(tmp_path):
    module = seeded(Frozen())
    file = save(export(module, torch.zeros(2, 3, 6, 6)), tmp_path / "frozen.pt2")
    network = torch_export.convert(file, jt.Zoo(tmp_path / "zoo"), "frozen")
    x = images(2, 6)
    (expected,) = jax.vjp(lambda x: network.apply(network.params, x), x)[1](jnp.ones((2, 6, 6, 4)))
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


@pytest.mark.parametrize("name", quick_cases(CHANGES, "owner", "several", "part", "view and owner", "detached before"))
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


@pytest.mark.parametrize("name", quick_cases(LAYERS, "batch norm", "layer norm", "group norm", "attention", "rrelu"))
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


class MaskOfColumns(nn.Module):
    """A buffer says which columns are read; what is made of them is written to the same columns."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([True, False, True, False, True, False]))
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        y = x.clone()
        y[..., self.mask] = self.linear(x[..., self.mask])
        return y


def on_a_copy(change):
    def forward(x):
        y = 1.5 * torch.tanh(x)
        change(y)
        return y

    return forward


def set_column(y):
    y[:, :, 2] = 0


def set_by_list(y):
    y[:, :, torch.tensor([True, False] * 3)] = 0


def set_by_value(y):
    y[y > 0.3] = 1


def add_to_slice(y):
    y[..., ::2] += y[..., 1::2]


def mask_made_in_place(x):
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[1:3, 2:] = True
    return x[:, :, mask].sum(-1) * x[:, :, ~mask].mean(-1)


def outlook(x):
    """Windows are weighed and summed where they overlap, as in VOLO."""
    windows = F.unfold(x, 3, padding=1)
    return F.fold(windows * windows.softmax(1), (6, 6), 3, padding=1)


def halo(x):
    """Overlapping windows of keys, as in HaloNet."""
    return F.pad(x, (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2).reshape(x.shape[0], 3, 9, -1).softmax(-1)


def unpool(x):
    y, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y * y, places, 2)


def rotary(x):
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], 3, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones(6, 3), torch.arange(18.0).reshape(6, 3))).flatten(3)


def swap_channels(x):
    y = torch.empty_like(x)
    y[:, 0], y[:, 1], y[:, 2] = x[:, 1], x[:, 0], x[:, 2] ** 2
    return y


PLACES = {
    "mask of columns": MaskOfColumns(),
    "set a column": on_a_copy(set_column),
    "set by a list": on_a_copy(set_by_list),
    "set by value": on_a_copy(set_by_value),
    "add to a slice": on_a_copy(add_to_slice),
    "mask made in place": mask_made_in_place,
    "fold": outlook,
    "unfold": halo,
    "unpool": unpool,
    "rotary": rotary,
    "empty": swap_channels,
    "fourier": lambda x: torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real,
}


@pytest.mark.parametrize("name", quick_cases(PLACES, "mask of columns", "set by value", "fold", "unpool"))
def test_values_written_and_read_at_places(name):
    module = PLACES[name]
    float32 = name == "rotary"  # its constants are complex numbers of 2 x 32 bits
    agrees(seeded(module if isinstance(module, nn.Module) else Function(module)), normal(2, 3, 6, 6),
           tolerance=1e-5 if float32 else 1e-9)  # fmt: skip


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x * x[x > 0].sum(), "aten.index.Tensor .* mask that depends on the images .* torch.where"),
        (lambda x: x.permute(0, 2, 3, 1).as_strided((x.shape[0], 4), (9, 1)), "as_strided.* call .contiguous"),
        (lambda x: F.gumbel_softmax(x, 1), "aten.exponential.default .* is not supported"),
    ],
)
def test_what_depends_on_values_or_memory_or_chance_is_refused(function, message):
    with pytest.raises(jt.JaxTransferError, match=message):
        torch_export.from_exported(export(Function(function), IMAGE))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_program_does_not_grow_with_its_sequences(kind):
    layer = seeded(kind(18, 4, batch_first=True, bidirectional=True))

    class Rows(nn.Module):
        def __init__(self, repeats):
            super().__init__()
            self.layer, self.repeats = layer, repeats

        def forward(self, x):
            return self.layer(x.transpose(1, 2).flatten(2).repeat(1, self.repeats, 1))[0]

    x, programs = images(2, 6), []
    for module in (Rows(1), Rows(3)):
        program, params = torch_export.from_exported(export(module, torch.zeros(2, 3, 6, 6)))
        np.testing.assert_allclose(quick_jit(program)(params, x), outputs(module, x), rtol=1e-5, atol=1e-6)
        programs.append(program)
    assert len(programs[0].nodes) == len(programs[1].nodes)
    maps = jt.attribute(programs[1], params, x)
    assert all(np.isfinite(m).all() for m in maps.values())
