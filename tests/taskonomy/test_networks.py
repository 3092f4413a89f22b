"""The Taskonomy networks against `visualpriors`, through files, the converter and a zoo."""

import functools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxtransfer as jt
from jaxtransfer import taskonomy
from jaxtransfer.taskonomy import networks
from support.helpers import quick_jit

torch = pytest.importorskip("torch")
pytest.importorskip("visualpriors")

from jaxtransfer.converters.taskonomy import convert  # noqa: E402
from support.taskonomy_release import random_decoder, random_encoder, save  # noqa: E402
from support.torch_oracle import torch_maps  # noqa: E402

pytestmark = pytest.mark.slow

# One seed each. The release's name, the paper's name, decoder, whether the file is of PyTorch's old format.
NETWORKS = {
    "denoise": ("denoising", {"out_channels": 3}, False),
    "class_1000": ("class_object", {"out_channels": 1000, "is_decoder_mlp": True}, True),
    "segmentsemantic": ("segmentsemantic", {"out_channels": 17, "apply_tanh": False}, False),
}
SIZES = [(64, 64), (75, 50), (256, 256)]
MAP_SIZES = [(75, 50), (128, 128), (75, 50)]


class Pair(NamedTuple):
    """The same network in PyTorch and out of the zoo."""

    encoder: Any
    decoder: Any
    network: jt.Network


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """On a busy machine PyTorch's threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    weights, zoo = tmp_path_factory.mktemp("weights"), jt.Zoo(tmp_path_factory.mktemp("zoo"))
    modules: dict[str, tuple[Any, Any]] = {}
    for seed, (task, (name, options, legacy)) in enumerate(NETWORKS.items()):
        modules[task] = random_encoder(seed), random_decoder(seed, **options)
        for part, module in zip(("encoder", "decoder"), modules[task], strict=True):
            save(weights, f"{name}_{part}", {"state_dict": module.state_dict()}, legacy=legacy)
    assert convert(weights, zoo) == [task for task in taskonomy.TASKS if task in NETWORKS]
    for file in weights.iterdir():
        file.unlink()
    return {task: Pair(encoder, decoder, zoo[task]) for task, (encoder, decoder) in modules.items()}


@pytest.fixture(params=NETWORKS)
def pair(pairs: dict[str, Pair], request: pytest.FixtureRequest) -> Pair:
    return pairs[request.param]


attribute = quick_jit(jt.attribute, static_argnums=0)
encode = quick_jit(taskonomy.encode)


def random_images(*shape: int) -> Any:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape) + shape[-1])) * 2 - 1


def nhwc(tensor: Any) -> jax.Array:
    array = tensor.detach().numpy()
    return jnp.asarray(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array)


def assert_close(ours: jax.Array, theirs: Any, what: str = "") -> None:
    wanted = nhwc(theirs)
    assert ours.shape == wanted.shape, what
    assert ours.dtype == jnp.float32
    assert jnp.abs(ours - wanted).max() <= 1e-4 * jnp.abs(wanted).max(), what


def torch_activations(module: Any, x: Any) -> dict[str, Any]:
    """What enters and leaves every submodule, copied before in-place operations change it."""
    found = {}
    handles = []
    for name, submodule in module.named_modules():

        def before(_: Any, args: Any, name: str = name) -> None:
            found[f"into {name}"] = args[0].clone()

        def after(_: Any, args: Any, output: Any, name: str = name) -> None:
            found[f"out of {name}"] = output.clone()

        handles += [submodule.register_forward_pre_hook(before), submodule.register_forward_hook(after)]
    module(x)
    for handle in handles:
        handle.remove()
    return found


def our_activations(kind: Any, channels: int, params: Any, x: jax.Array, monkeypatch: Any) -> dict[str, jax.Array]:
    """The same of our submodules that hold weights: between them lie activation functions and pooling only."""
    graph, _ = taskonomy.skeleton(kind, channels)
    found, paths = {}, {}

    def recording(call: Any) -> Any:
        @functools.wraps(call)
        def record(self: Any, x: jax.Array) -> jax.Array:
            found[f"into {paths[id(self)]}"] = x
            found[f"out of {paths[id(self)]}"] = y = call(self, x)
            return y

        return record

    for each in (nnx.Conv, nnx.ConvTranspose, nnx.Linear, nnx.BatchNorm, taskonomy.Bottleneck, kind):
        monkeypatch.setattr(each, "__call__", recording(each.__call__))

    @quick_jit
    def observe(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        module: Any = nnx.merge(graph, nnx.restore_int_paths(params))
        paths.update((id(submodule), ".".join(map(str, path))) for path, submodule in nnx.iter_modules(module))
        module(x)
        return found

    return observe(params, x)


@pytest.mark.parametrize(("task", "size"), [*zip(NETWORKS, SIZES, strict=True)])
def test_every_activation_of_the_encoder(
    pairs: dict[str, Pair], task: str, size: tuple[int, int], monkeypatch: Any
) -> None:
    pair = pairs[task]
    x = random_images(1, 3, *size)
    theirs = torch_activations(pair.encoder, x)
    ours = our_activations(taskonomy.Encoder, 3, pair.network.params["encoder"], nhwc(x), monkeypatch)
    # 3 + 4 + 6 + 3 blocks of 6 layers and themselves, 4 projections of 2, 2 stems, 2 for compression, the whole.
    assert len(ours) == 2 * (16 * 7 + 8 + 2 + 2 + 1)
    for name, activation in ours.items():
        if name == "into conv1":  # PyTorch pads before it.
            continue
        assert_close(activation, theirs[name], name)


def test_every_activation_of_the_decoder(pair: Pair, monkeypatch: Any) -> None:
    x = torch.relu(random_images(1, 8, 16, 16))
    theirs = torch_activations(pair.decoder, x)
    params = pair.network.params["decoder"]
    if "fc0" in params:
        kind, channels, count = taskonomy.FullyConnectedDecoder, 1000, 4
    else:
        kind, channels, count = taskonomy.ConvolutionalDecoder, theirs["out of decoder_output.0"].shape[1], 28
    ours = our_activations(kind, channels, params, nhwc(x), monkeypatch)
    assert len(ours) == 2 * count
    for name, activation in ours.items():
        if name == "out of ":  # Ours ends before tanh.
            assert_close(activation, theirs["out of fc2" if count == 4 else "out of decoder_output.0"])
        elif "deconv" in name and name.endswith(".1"):  # PyTorch pads before it and cuts after it.
            assert_close(activation, theirs[name][:, :, 1:, 1:], name)
        elif name != "into fc0":
            assert_close(activation, theirs[name], name)


def test_representation_and_prediction(pairs: dict[str, Pair]) -> None:
    for task, pair in pairs.items():
        x = random_images(1, 3, 256, 256)
        params, representation = pair.network.params, pair.encoder(x)
        assert_close(encode(params, nhwc(x)), representation, task)
        ours = quick_jit(functools.partial(taskonomy.decode, tanh=taskonomy.TASKS[task].tanh))(params, nhwc(x))
        assert_close(ours, pair.decoder(representation), task)


@pytest.mark.parametrize(("task", "size"), [*zip(NETWORKS, MAP_SIZES, strict=True)])
def test_maps(pairs: dict[str, Pair], task: str, size: tuple[int, int]) -> None:
    pair = pairs[task]
    x = random_images(2, 3, *size)
    theirs = torch_maps(pair.encoder, x)
    ours = attribute(pair.network.apply, pair.network.params, nhwc(x))
    assert ours.keys() == theirs.keys()
    for method, maps in ours.items():
        for one, other in zip(np.asarray(maps), np.asarray(nhwc(theirs[method])), strict=True):
            assert np.any(other)
            cosine = np.vdot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)
            assert cosine >= 0.9999, method


@pytest.mark.parametrize("size", [(8, 8), (9, 6), (3, 2)])
def test_pooling_with_equal_values_passes_the_gradient_like_pytorch(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (2, 4, *size), generator=generator).float().requires_grad_(True)
    theirs = torch.nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)
    weights = torch.rand(theirs.shape, generator=generator)
    (gradient,) = torch.autograd.grad(theirs, x, weights)
    ours, vjp = jax.vjp(networks._max_pool, nhwc(x))
    np.testing.assert_array_equal(ours, nhwc(theirs))
    np.testing.assert_allclose(vjp(nhwc(weights))[0], nhwc(gradient), rtol=1e-6)


def test_fully_connected_decoder_wants_256(pairs: dict[str, Pair]) -> None:
    with pytest.raises(jt.JaxTransferError, match="256x256 pixels, not 64x96"):
        jax.eval_shape(taskonomy.decode, pairs["class_1000"].network.params, jnp.zeros((1, 64, 96, 3)))


def test_encoder_alone_predicts_nothing(pairs: dict[str, Pair]) -> None:
    params = {"encoder": pairs["denoise"].network.params["encoder"]}
    with pytest.raises(jt.JaxTransferError, match="no decoder"):
        taskonomy.decode(params, jnp.zeros((1, 64, 64, 3)))


def test_one_compilation_for_all_tasks(pairs: dict[str, Pair]) -> None:
    encode = jax.jit(chex.assert_max_traces(taskonomy.encode, n=1))
    for pair in pairs.values():
        jax.eval_shape(encode, {"encoder": pair.network.params["encoder"]}, jnp.zeros((1, 32, 32, 3)))


def test_tasks() -> None:
    kinds = defaultdict(list)
    for name, task in taskonomy.TASKS.items():
        kinds[task.preprocess].append(name)
        assert taskonomy.task_name(name) == taskonomy.task_name(task.release) == name
    assert sorted(map(len, kinds.values())) == [1, 1, 9, 14]
    assert (
        list(taskonomy.TASKS)[:20]
        == (
            "autoencoder curvature denoise edge2d edge3d keypoint2d keypoint3d colorization reshade rgb2depth rgb2mist "
            "rgb2sfnorm room_layout segment25d segment2d vanishing_point segmentsemantic class_1000 class_places "
            "inpainting_whole"
        ).split()
    )
    with pytest.raises(jt.JaxTransferError, match="There is no task 'juggling' in Taskonomy; there are: autoenc"):
        taskonomy.task_name("juggling")


def test_tasks_are_those_of_visualpriors() -> None:
    from visualpriors.taskonomy_network import DONT_APPLY_TANH_TASKS, task_mapping

    assert {name: task.release for name, task in taskonomy.TASKS.items()} == task_mapping
    assert [task.release for task in taskonomy.TASKS.values() if not task.tanh] == DONT_APPLY_TANH_TASKS
