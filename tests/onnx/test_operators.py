"""Every operator of the table agrees with onnxruntime, in the forms of the opsets that changed it."""

from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper

import jaxtransfer as jt
from jaxtransfer.converters.onnx_network import read_onnx
from support.helpers import quick_cases
from support.onnx_models import channels_first, model, node, normal, reference, rng, save


def agrees(tmp_path, nodes, weights=(), *, opset=21, shape=(8, 8, 3), x=None, tolerance=1e-5, many: str | int = "N"):
    """Two images through a model in onnxruntime and in JAX; `many` is how many the model says it takes."""
    images = normal(2, *shape, seed=1) if x is None else x
    images[..., 3:] = 1  # a fourth channel is opacity
    made = model(nodes, weights, opset=opset, image=(many, images.shape[3], *images.shape[1:3]))
    batches = [images] if many == "N" else np.split(images, len(images))
    expected = np.concatenate([reference(made, "y", x=channels_first(batch))[0] for batch in batches])
    network = read_onnx(save(made, tmp_path / "model.onnx")).network("net", "y")
    program: Any = network.apply
    result = np.asarray(program(network.params, images[..., :3]))
    if str(program.output).endswith("channels_last"):
        expected = np.moveaxis(expected, 1, -1)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)
    return network


ONE = {
    **{
        op: {}
        for op in "Relu Sigmoid Tanh Mish HardSwish LeakyRelu Elu Celu Selu Gelu Softplus Softsign HardSigmoid "
        "ThresholdedRelu Shrink Exp Neg Sign Floor Ceil Round Sin Cos Tan Atan Sinh Cosh Asinh Erf Abs Reciprocal "
        "Identity Softmax LogSoftmax Hardmax GlobalAveragePool GlobalMaxPool GlobalLpPool MeanVarianceNormalization "
        "LpNormalization Dropout Flatten".split()
    },
    "LeakyRelu slope": {"alpha": 0.3},
    "Elu slope": {"alpha": 0.3},
    "Celu slope": {"alpha": 0.3},
    "Gelu tanh": {"approximate": "tanh"},
    "HardSigmoid slope": {"alpha": 1 / 6, "beta": 0.4},
    "ThresholdedRelu at": {"alpha": 0.3},
    "Shrink by": {"bias": 0.2, "lambd": 0.7},
    "Softmax axis": {"axis": 1},
    "LogSoftmax axis": {"axis": 2},
    "LpNormalization ones": {"axis": 1, "p": 1},
    "GlobalLpPool ones": {"p": 1},
    "Transpose": {"perm": [0, 3, 1, 2]},
    "Flatten axis": {"axis": -3},
    "LRN": {"size": 3, "alpha": 0.1, "beta": 0.6, "bias": 1.5},
    "DepthToSpace": {"blocksize": 2},
    "DepthToSpace CRD": {"blocksize": 2, "mode": "CRD"},
    "SpaceToDepth": {"blocksize": 2},
    "MaxPool": {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
    "MaxPool dilated": {"kernel_shape": [2, 2], "dilations": [2, 2], "strides": [2, 2]},
    "MaxPool ceil": {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    "MaxPool same": {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "MaxPool lower": {"kernel_shape": [2, 2], "strides": [1, 1], "auto_pad": "SAME_LOWER"},
    "AveragePool": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "AveragePool count": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    "AveragePool uneven": {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]},
    "AveragePool uneven count": {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1},
    "AveragePool ceil": {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    "AveragePool same": {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
}


@pytest.mark.parametrize("case", quick_cases(ONE, "Relu", "MaxPool"))
def test_operators_of_one_array(case, tmp_path):
    op = case.split()[0]
    shape = (8, 6, 8) if op == "DepthToSpace" else (8, 8, 3)
    agrees(tmp_path, [node(op, "x", **ONE[case])], shape=shape if op != "DepthToSpace" else (8, 8, 4))


@pytest.mark.parametrize("op", ["Sqrt", "Log", "Acosh", "Asin", "Acos", "Atanh"])
def test_operators_of_a_range(op, tmp_path):
    if op == "Swish":
        pytest.skip("onnxruntime has no Swish")
    x = (
        rng().uniform(1.1, 2, (2, 8, 8, 3))
        if op in ("Sqrt", "Log", "Acosh")
        else rng().uniform(-0.9, 0.9, (2, 8, 8, 3))
    )
    agrees(tmp_path, [node(op, "x")], x=x.astype(np.float32))


TWO = "Add Sub Mul Div Max Min Sum Mean PRelu".split()


@pytest.mark.parametrize("op", TWO)
def test_operators_of_two_arrays(op, tmp_path):
    agrees(tmp_path, [node(op, "x", "w")], {"w": normal(3, 1, 8)})
    if op != "PRelu":
        agrees(tmp_path, [node(op, "w", "x")], {"w": normal(1, 8, 8)})


@pytest.mark.parametrize("op", ["Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal", "And", "Or", "Xor"])
def test_comparisons_choose(op, tmp_path):
    if op in ("And", "Or", "Xor"):
        nodes = [
            node("Greater", "x", "w", outputs=["a"]),
            node("Not", "a", outputs=["b"]),
            node(op, "a", "b", outputs=["c"]),
        ]
    else:
        nodes = [node(op, "x", "w", outputs=["c"])]
    weights = {"w": normal(3, 1, 8), "half": np.float32(0.5)}
    agrees(tmp_path, [*nodes, node("Where", "c", "x", "w")], weights)
    agrees(tmp_path, [*nodes, node("Cast", "c", to=TensorProto.FLOAT)], weights)


def test_powers(tmp_path):
    agrees(tmp_path, [node("Pow", "x", "e")], {"e": np.float32(2)})
    agrees(tmp_path, [node("Pow", "x", "e")], {"e": np.array([3], np.int64)})
    agrees(
        tmp_path, [node("Abs", "x", outputs=["a"]), node("Pow", "a", "e")], {"e": np.array([0.5, 1.5] * 4, np.float32)}
    )


def test_remainders(tmp_path):
    weights = {"w": np.float32(0.7)}
    agrees(tmp_path, [node("Mod", "x", "w", fmod=1)], weights)
    nodes = [node("Cast", "x", outputs=["i"], to=TensorProto.INT32), node("Mod", "i", "m", outputs=["r"])]
    agrees(tmp_path, [*nodes, node("Cast", "r", to=TensorProto.FLOAT)], {"m": np.int32(-3)})
    nodes[1] = node("Div", "i", "m", outputs=["r"])
    agrees(tmp_path, [*nodes, node("Cast", "r", to=TensorProto.FLOAT)], {"m": np.int32(-2)})


@pytest.mark.parametrize("opset", [9, 13])
def test_clipping(opset, tmp_path):
    if opset == 9:
        agrees(tmp_path, [node("Clip", "x", min=-0.5, max=0.3)], opset=opset)
        agrees(tmp_path, [node("Clip", "x", max=0.3)], opset=opset)
        return
    limits = {"low": np.float32(-0.5), "high": np.float32(0.3)}
    agrees(tmp_path, [node("Clip", "x", "low", "high")], limits, opset=opset)
    agrees(tmp_path, [node("Clip", "x", "", "high")], limits, opset=opset)


@pytest.mark.parametrize("opset", [9, 11, 13])
@pytest.mark.parametrize("axis", [None, 1, 2, 3])
def test_softmax_took_the_last_axes_together_before_opset_13(opset, axis, tmp_path):
    given = {} if axis is None else {"axis": axis}
    agrees(tmp_path, [node("Softmax", "x", **given)], opset=opset)


REDUCTIONS = "Sum Mean Max Min Prod L1 L2 LogSum LogSumExp SumSquare".split()


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name, opset, tmp_path):
    x = np.abs(normal(2, 8, 8, 3)) + 0.1
    as_input = opset >= 18 or (opset >= 13 and name == "Sum")
    for axes, keep in (([2, 3], 0), ([-1], 1)):
        given: Any = {} if as_input else {"axes": axes}
        inputs = ["x", "axes"] if as_input else ["x"]
        weights = {"axes": np.array(axes)} if as_input else {}
        agrees(tmp_path, [node(f"Reduce{name}", *inputs, keepdims=keep, **given)], weights, opset=opset, x=x)


def test_reductions_over_no_axes(tmp_path):
    empty = {"axes": np.array([], np.int64)}
    agrees(tmp_path, [node("ReduceSum", "x", "axes", noop_with_empty_axes=1)], empty)
    network = read_onnx(save(model([node("ReduceSum", "x", keepdims=1)]), tmp_path / "m.onnx")).network("n", "y")
    x = normal(2, 8, 8, 3)  # over all axes, so that images would mix: each is taken alone
    np.testing.assert_allclose(network.apply(network.params, x)[:, 0, 0, 0], x.sum((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("opset", [9, 13])
def test_axes_that_come_and_go(opset, tmp_path):
    if opset == 9:
        nodes = [node("Unsqueeze", "x", outputs=["u"], axes=[1, 4]), node("Squeeze", "u", axes=[4, 1])]
        agrees(tmp_path, nodes, opset=opset)
        return
    weights = {"to": np.array([1, -1]), "fro": np.array([-1, 1])}
    nodes = [node("Unsqueeze", "x", "to", outputs=["u"]), node("Squeeze", "u", "fro")]
    agrees(tmp_path, nodes, weights, opset=opset)
    nodes = [node("GlobalAveragePool", "x", outputs=["g"]), node("Squeeze", "g")]
    agrees(tmp_path, nodes, opset=opset)


@pytest.mark.parametrize("opset", [9, 13])
def test_slices(opset, tmp_path):
    if opset == 9:
        agrees(tmp_path, [node("Slice", "x", starts=[1, -3], ends=[2**62, -1], axes=[1, 3])], opset=opset)
        return
    weights = {
        "starts": np.array([1, -1, 0]),
        "ends": np.array([2**62, -(2**62), 7]),
        "axes": np.array([1, -1, 2]),
        "steps": np.array([1, -2, 3]),
    }
    agrees(tmp_path, [node("Slice", "x", "starts", "ends", "axes", "steps")], weights, opset=opset)
    weights = {"starts": np.array([0, 1]), "ends": np.array([9, 3])}
    agrees(tmp_path, [node("Slice", "x", "starts", "ends")], weights, opset=opset)


@pytest.mark.parametrize("opset", [9, 13, 18])
def test_splits(opset, tmp_path):
    for sizes in ([3, 5], None):
        given, weights, inputs = {}, {}, ["x"]
        if sizes and opset < 13:
            given["split"] = sizes
        elif sizes:
            weights, inputs = {"sizes": np.array(sizes)}, ["x", "sizes"]
        elif opset >= 18:
            given["num_outputs"] = 2
        split = node("Split", *inputs, outputs=["a", "b"], axis=2, **given)
        agrees(tmp_path, [split, node("Concat", "b", "a", axis=-2)], weights, opset=opset)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("opset", [9, 13, 19])
def test_padding(mode, opset, tmp_path):
    if mode == "wrap" and opset < 19:
        pytest.skip("no such mode yet")
    pads = [0, 0, 1, 2, 0, 0, 3, 0]
    if opset == 9:
        agrees(tmp_path, [node("Pad", "x", pads=pads, mode=mode, value=0.5)], opset=opset)
        return
    weights = {"pads": np.array(pads), "value": np.float32(0.5)}
    agrees(tmp_path, [node("Pad", "x", "pads", "value", mode=mode)], weights, opset=opset)
    if opset >= 19:
        weights = {"pads": np.array([2, 1]), "axes": np.array([-1])}
        agrees(tmp_path, [node("Pad", "x", "pads", "", "axes", mode=mode)], weights, opset=opset)
    weights = {"pads": np.array([0, 0, -1, 2, 0, 0, 3, -2]), "value": np.float32(0.5)}
    if mode == "constant":
        agrees(tmp_path, [node("Pad", "x", "pads", "value", mode=mode)], weights, opset=opset)


CONVOLUTIONS = {
    "plain": {},
    "strided": {"strides": [2, 1], "pads": [1, 1, 1, 1]},
    "uneven": {"pads": [0, 1, 2, 1], "strides": [2, 2]},
    "dilated": {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
    "same": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "lower": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "valid": {"auto_pad": "VALID"},
}


@pytest.mark.parametrize("case", quick_cases(CONVOLUTIONS, "plain"))
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions(case, groups, tmp_path):
    weights = {"w": normal(8, 4 // groups, 3, 3), "b": normal(8, seed=2)}
    for bias in ([], ["b"]):
        agrees(tmp_path, [node("Conv", "x", "w", *bias, group=groups, **CONVOLUTIONS[case])], weights, shape=(8, 8, 4))


TRANSPOSED = {
    "plain": {},
    "strided": {"strides": [2, 3], "pads": [1, 0, 1, 0]},
    "uneven": {"strides": [2, 2], "pads": [1, 0, 0, 1]},
    "more": {"strides": [2, 2], "output_padding": [1, 1]},
    "shape": {"strides": [2, 2], "output_shape": [16, 17]},
    "same": {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "dilated": {"dilations": [2, 2]},
}


@pytest.mark.parametrize("case", quick_cases(TRANSPOSED, "plain"))
def test_transposed_convolutions(case, tmp_path):
    weights = {"w": normal(4, 3, 3, 3), "b": normal(6, seed=2)}
    agrees(tmp_path, [node("ConvTranspose", "x", "w", "b", group=2, **TRANSPOSED[case])], weights, shape=(8, 8, 4))


def test_products(tmp_path):
    weights = {"w": normal(8, 5), "v": normal(3, 8, 5), "r": normal(8), "c": normal(5)}
    agrees(tmp_path, [node("MatMul", "x", "w")], weights)
    agrees(tmp_path, [node("MatMul", "x", "v")], weights)
    agrees(tmp_path, [node("MatMul", "x", "r")], weights)
    flat = [node("ReduceMean", "x", "axes", outputs=["m"], keepdims=0)]
    weights = {"axes": np.array([1, 2]), "w": normal(8, 5), "t": normal(5, 8), "c": normal(5)}
    agrees(tmp_path, [*flat, node("Gemm", "m", "w", "c")], weights)
    agrees(tmp_path, [*flat, node("Gemm", "m", "t", "c", transB=1, alpha=0.5, beta=2.0)], weights)
    agrees(tmp_path, [*flat, node("Gemm", "m", "w")], weights)
    agrees(tmp_path, [node("Einsum", "x", "w", equation="nchw, wd -> nchd")], weights)


def test_normalisation(tmp_path):
    weights = {"s": normal(4), "b": normal(4, seed=1), "m": normal(4, seed=2), "v": np.abs(normal(4, seed=3)) + 0.1}
    norm = node("BatchNormalization", "x", "s", "b", "m", "v", epsilon=0.01)
    for opset in (9, 14, 15):
        agrees(tmp_path, [norm], weights, opset=opset, shape=(8, 8, 4))
    agrees(tmp_path, [node("InstanceNormalization", "x", "s", "b")], weights, shape=(8, 8, 4))
    weights |= {"l": normal(8), "k": normal(8, seed=4)}
    agrees(tmp_path, [node("LayerNormalization", "x", "l", "k", axis=-1, epsilon=0.1)], weights, shape=(8, 8, 4))
    agrees(tmp_path, [node("LayerNormalization", "x", "w", axis=2)], {"w": normal(8, 8)}, shape=(8, 8, 4))
    agrees(tmp_path, [node("GroupNormalization", "x", "s", "b", num_groups=2)], weights, opset=21, shape=(8, 8, 4))
    per_group = {"s": normal(2), "b": normal(2, seed=1)}
    agrees(tmp_path, [node("GroupNormalization", "x", "s", "b", num_groups=2)], per_group, opset=18, shape=(8, 8, 4))
    agrees(tmp_path, [node("RMSNormalization", "x", "l")], weights, opset=23, shape=(8, 8, 4))


RESIZES = {
    f"{mode} {where}": {"mode": mode, "coordinate_transformation_mode": where}
    for mode in ("nearest", "linear", "cubic")
    for where in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")
} | {
    "nearest floor": {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
    "nearest ceil": {"nearest_mode": "ceil"},
    "nearest up": {"nearest_mode": "round_prefer_ceil"},
    "linear smooth": {"mode": "linear", "antialias": 1},
    "cubic smooth": {"mode": "cubic", "antialias": 1, "cubic_coeff_a": -0.5},
    "cubic inside": {"mode": "cubic", "exclude_outside": 1},
}


@pytest.mark.parametrize("case", quick_cases(RESIZES, "linear half_pixel"))
def test_resizes(case, tmp_path):
    given = RESIZES[case]
    for scales in ([1, 1, 2, 2], [1, 1, 0.6, 1.7]):
        weights = {"scales": np.array(scales, np.float32)}
        agrees(tmp_path, [node("Resize", "x", "", "scales", **given)], weights, opset=19)
    if "symmetric" not in case:
        sides: Any = given | {"axes": [2, 3]}
        agrees(tmp_path, [node("Resize", "x", "", "", "sizes", **sides)], {"sizes": np.array([5, 16])}, opset=19)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizes_of_earlier_opsets(mode, tmp_path):
    weights = {"scales": np.array([1, 1, 2, 3], np.float32)}
    agrees(tmp_path, [node("Upsample", "x", "scales", mode=mode)], weights, opset=9)
    agrees(tmp_path, [node("Upsample", "x", scales=[1.0, 1.0, 2.0, 3.0], mode=mode)], opset=8)
    agrees(tmp_path, [node("Resize", "x", "scales", mode=mode)], weights, opset=10)


def test_resizes_of_a_region_and_by_policy(tmp_path):
    given = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 3.0, "mode": "linear"}
    weights = {
        "roi": np.array([0, 0, 0.2, -0.1, 1, 1, 0.7, 1.2], np.float32),
        "scales": np.array([1, 1, 0.7, 0.8], np.float32),
    }
    agrees(tmp_path, [node("Resize", "x", "roi", "scales", **given)], weights, opset=13)
    for policy in ("not_larger", "not_smaller"):
        given = {"axes": [2, 3], "keep_aspect_ratio_policy": policy}
        agrees(tmp_path, [node("Resize", "x", "", "", "s", **given)], {"s": np.array([12, 20])}, opset=19)


def test_gathers(tmp_path):
    weights = {"i": np.array([[2, 0], [-1, 1]]), "o": np.array(1), "n": np.array([[0, 1], [1, 2]])}
    agrees(tmp_path, [node("Gather", "x", "i", axis=1)], weights)
    agrees(tmp_path, [node("Gather", "x", "o", axis=-1)], weights)
    agrees(tmp_path, [node("GatherElements", "x", "k", axis=3)], {"k": rng().integers(0, 8, (1, 3, 8, 20))}, many=1)
    agrees(
        tmp_path,
        [
            node("Transpose", "x", outputs=["t"], perm=[1, 2, 0, 3]),
            node("GatherND", "t", "n", outputs=["g"]),
            node("Transpose", "g", perm=[1, 0, 2]),
        ],
        weights,
    )


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatters(reduction, tmp_path):
    given = {} if reduction == "none" else {"reduction": reduction}
    weights = {
        "i": rng().permutation(8).reshape(1, 1, 1, 8).repeat(3, 1).repeat(2, 0)[..., :5],
        "u": normal(2, 3, 1, 5),
    }
    agrees(tmp_path, [node("ScatterElements", "x", "i", "u", axis=3, **given)], weights, opset=18)
    weights = {"i": np.array([[0, 1], [1, 2]]), "u": normal(2, 8, 8)}
    agrees(tmp_path, [node("ScatterND", "x", "i", "u", **given)], weights, opset=18)


def test_shapes_are_arithmetic_in_numpy(tmp_path):
    nodes = [
        node("Shape", "x", outputs=["s"]),
        node("Gather", "s", "zero", outputs=["n"]),
        node("Unsqueeze", "n", "first", outputs=["n1"]),
        node("Slice", "s", "two", "four", outputs=["hw"]),
        node("ReduceProd", "hw", outputs=["places"], keepdims=1),
        node("Div", "places", "four", outputs=["q"]),
        node("Mul", "q", "four", outputs=["p"]),
        node("Concat", "n1", "three", "p", outputs=["to"], axis=0),
        node("Reshape", "x", "to", outputs=["r"]),
        node("ConstantOfShape", "p", outputs=["c"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])),
        node("Cast", "p", outputs=["f"], to=TensorProto.FLOAT),
        node("Squeeze", "f", outputs=["length"]),
        node("Range", "null", "length", "step", outputs=["range"]),
        node("Add", "c", "range", outputs=["d"]),
        node("Add", "r", "d"),
    ]
    numbers = {"zero": 0, "first": [0], "two": [2], "four": [4], "three": [3]}
    weights = {name: np.array(value) for name, value in numbers.items()}
    weights |= {"null": np.float32(0), "step": np.float32(1)}
    network = agrees(tmp_path, nodes, weights)
    program = jax.make_jaxpr(network.apply)(network.params, normal(2, 8, 8, 3))
    assert [e.primitive.name for e in program.eqns if e.primitive.name not in ("transpose", "reshape")] in (
        ["broadcast_in_dim", "add"],
        ["add"],
    )
    assert not network.params


def test_masks_and_positions(tmp_path):
    weights = {"k": np.array(1), "axis": np.array(3), "depth": np.array(4), "values": np.array([0.5, 2], np.float32)}
    agrees(tmp_path, [node("Trilu", "x", "k", upper=0)], weights)
    agrees(tmp_path, [node("Trilu", "x")], weights)
    agrees(tmp_path, [node("CumSum", "x", "axis", exclusive=1, reverse=1)], weights)
    agrees(tmp_path, [node("CumSum", "x", "axis")], weights)
    for op in ("ArgMax", "ArgMin"):
        found = [node(op, "x", outputs=["i"], axis=2, select_last_index=1, keepdims=0)]
        agrees(tmp_path, [*found, node("Cast", "i", to=TensorProto.FLOAT)])
    agrees(
        tmp_path,
        [node("ArgMax", "x", outputs=["i"], axis=1, keepdims=0), node("OneHot", "i", "depth", "values", axis=1)],
        weights,
    )
    agrees(tmp_path, [node("TopK", "x", "k3", outputs=["y", "i"], axis=2)], {"k3": np.array([3])})
    agrees(tmp_path, [node("TopK", "x", outputs=["y", "i"], axis=3, k=2)], opset=9)
    agrees(
        tmp_path,
        [node("TopK", "x", "k3", outputs=["v", "i"], largest=0), node("Cast", "i", to=TensorProto.FLOAT)],
        {"k3": np.array([3])},
    )
    agrees(tmp_path, [node("EyeLike", "w", outputs=["e"], k=1), node("MatMul", "x", "e")], {"w": normal(8, 8)})
    agrees(
        tmp_path,
        [
            node("NonZero", "w", outputs=["i"]),
            node("Squeeze", "i", "z", outputs=["j"]),
            node("Gather", "x", "j", axis=3),
        ],
        {"w": np.array([0, 1, 1, 0, 2.0], np.float32), "z": np.array([0])},
    )
    agrees(
        tmp_path,
        [
            node("IsNaN", "x", outputs=["a"]),
            node("IsInf", "x", outputs=["b"]),
            node("Or", "a", "b", outputs=["c"]),
            node("Where", "c", "w", "x"),
        ],
        {"w": np.float32(1)},
    )
    agrees(tmp_path, [node("Tile", "x", "r")], {"r": np.array([1, 2, 1, 3])})
    agrees(
        tmp_path,
        [
            node("Size", "w", outputs=["n"]),
            node("Cast", "n", outputs=["f"], to=TensorProto.FLOAT),
            node("CastLike", "f", "x", outputs=["g"]),
            node("Mul", "x", "g"),
        ],
        {"w": normal(3)},
    )


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_sampling(mode, padding, tmp_path):
    for align in (0, 1):
        given = {"mode": mode, "padding_mode": padding, "align_corners": align}
        grid = {"g": rng().uniform(-1.3, 1.3, (1, 5, 6, 2)).astype(np.float32)}
        agrees(tmp_path, [node("GridSample", "x", "g", **given)], grid, opset=20, many=1)


RECURRENT: dict[str, tuple[int, dict[str, Any]]] = {
    "LSTM": (4, {}),
    "LSTM both": (4, {"direction": "bidirectional"}),
    "LSTM back": (4, {"direction": "reverse"}),
    "GRU both": (3, {"direction": "bidirectional", "linear_before_reset": 1}),
    "RNN": (1, {}),
    "RNN relu": (1, {"activations": ["Relu"]}),
}


@pytest.mark.parametrize("case", quick_cases(RECURRENT, "LSTM"))
def test_recurrent_layers(case, tmp_path):
    gates, given = RECURRENT[case]
    directions = 2 if "both" in case else 1
    weights = {"w": normal(directions, gates * 4, 3), "r": normal(directions, gates * 4, 4, seed=1)}
    weights |= {"b": normal(directions, gates * 8, seed=2), "to": np.array([64, -1, 3])}
    before = [node("Transpose", "x", outputs=["t"], perm=[2, 3, 0, 1]), node("Reshape", "t", "to", outputs=["s"])]
    for bias in ([], ["b"]):
        layer = node(case.split()[0], "s", "w", "r", *bias, outputs=["all", "last"], hidden_size=4, **given)
        agrees(tmp_path, [*before, layer, node("Transpose", "last", perm=[1, 0, 2])], weights)
        agrees(tmp_path, [*before, layer, node("Transpose", "all", perm=[2, 0, 1, 3])], weights)


def test_attention(tmp_path):
    weights = {"s": np.array([0, 3, 64]), "m": normal(64, 64)}
    tokens = [node("Reshape", "x", "s", outputs=["r"]), node("Transpose", "r", outputs=["t"], perm=[0, 2, 1])]
    q = [node("MatMul", "t", f"w{i}", outputs=[f"q{i}"]) for i in range(3)]
    weights |= {f"w{i}": normal(3, 8, seed=i) for i in range(3)}
    attend = node("Attention", "q0", "q1", "q2", "m", q_num_heads=2, kv_num_heads=2)
    agrees(tmp_path, [*tokens, *q, attend], weights, opset=23)
    attend = node("Attention", "q0", "q1", "q2", q_num_heads=4, kv_num_heads=4, is_causal=1, scale=0.3)
    agrees(tmp_path, [*tokens, *q, attend], weights, opset=23)


def branch(name, op):
    return helper.make_graph([node(op, "x", outputs=["z"])], name, [], [helper.make_empty_tensor_value_info("z")])


def test_a_condition_on_shapes_is_decided(tmp_path):
    nodes = [
        node("Shape", "x", outputs=["s"], start=1, end=2),
        node("Equal", "s", "three", outputs=["c"]),
        node("If", "c", then_branch=branch("a", "Relu"), else_branch=branch("b", "Neg")),
    ]
    made = model(nodes, {"three": np.array([3])})
    network = read_onnx(save(made, tmp_path / "m.onnx")).network("net", "y")
    x = normal(2, 8, 8, 3)
    np.testing.assert_array_equal(network.apply(network.params, x), np.maximum(x, 0))


def test_what_depends_on_values_is_refused_by_name_but_not_what_lies_before(tmp_path):
    nodes = [
        node("Relu", "x", outputs=["r"]),
        node("ReduceMax", "r", outputs=["m"], keepdims=0),
        node("Cast", "m", outputs=["c"], to=TensorProto.BOOL),
        node("If", "c", then_branch=branch("a", "Relu"), else_branch=branch("b", "Neg")),
        node("Exp", "y", outputs=["after"]),
    ]
    read = read_onnx(save(model(nodes), tmp_path / "m.onnx"))
    with pytest.raises(
        jt.JaxTransferError, match=r"'after' cannot be computed: the operator If at 'If of y'.*condition"
    ):
        read.network("net", "after")
    assert read.network("net", "r").params == {}
