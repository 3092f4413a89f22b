"""Every operation of the table against PyTorch, in float64: values, and gradients where PyTorch has them."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxtransfer.aten import OPS  # noqa: E402
from jaxtransfer.converters.lower import shares_memory_with  # noqa: E402
from jaxtransfer.errors import JaxTransferError  # noqa: E402
from support.aten_cases import CASES as MORE_CASES  # noqa: E402
from support.aten_cases import FIXED, IMAGE, KINKS, B, fixed, ints, pos, r  # noqa: E402


def conv(x, w, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), out=None, groups=1):
    return (x, w, bias, stride, padding, dilation, out is not None, out or (0,) * len(stride), groups)


# name -> argument lists; a dict at the end of one holds keyword arguments.
CASES = {
    **{
        f"{name}.default": [(KINKS,), (r(2, 3),)]
        for name in (
            "relu sigmoid tanh silu mish log_sigmoid selu hardsigmoid hardswish relu6 abs neg sign floor ceil "
            "round square sin cos sinc atan erf celu elu gelu hardtanh leaky_relu softplus hardshrink softshrink"
        ).split()
    },
    **{f"{name}.default": [(pos(2, 3),)] for name in "sqrt rsqrt log log1p log2 reciprocal".split()},
    **{f"{name}.default": [(r(2, 3),), (ints(3, 4),)] for name in ("exp", "expm1")},
    **{
        f"{name}.{kind}": [(KINKS, KINKS.flip(1) if kind == "Tensor" else 0.5), (ints(3, 4), other)]
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for kind, other in (("Tensor", ints(3, 4)), ("Scalar", 1))
    },
    **{f"logical_{name}.default": [(B, ~B[:1]), (ints(2, 3, 4), B)] for name in ("and", "or")},
    **{f"bitwise_{name}.Tensor": [(B, ~B[:1])] for name in ("and", "or")},
    "logical_not.default": [(B,), (ints(2, 4),)],
    "bitwise_not.default": [(B,)],
    "rrelu.default": [(KINKS,), (r(2, 3), 0.1, 0.5, False)],
    "prelu.default": [(IMAGE, r(4)), (IMAGE, r(1)), (KINKS, pos(1))],
    "_prelu_kernel.default": [(IMAGE, r(1, 4, 1, 1))],
    "threshold.default": [(KINKS, 0.5, 2.0)],
    "glu.default": [(r(2, 6, 3), 1)],
    "add.Tensor": [(IMAGE, r(7)), (IMAGE, 2.0), (ints(3, 4), 0.5), (ints(3, 2), r(3, 2), {"alpha": 3})],
    "add.Scalar": [(IMAGE, 2)],
    "sub.Tensor": [(r(3), r(2, 3), {"alpha": 2}), (ints(4, 3), torch.tensor(0.5))],
    "sub.Scalar": [(r(3), 1)],
    "rsub.Scalar": [(r(3), 1), (r(3), 2.0, 3)],
    "rsub.Tensor": [(r(3), r(2, 3))],
    "mul.Tensor": [(IMAGE, r(4, 1, 1)), (r(3), 2), (ints(3, 4), r(4)), (B, r(4))],
    "mul.Scalar": [(r(3), 2)],
    "div.Tensor": [(IMAGE, pos(7)), (ints(9, 4), 4), (r(3), 3)],
    "div.Scalar": [(r(3), 2.0)],
    "div.Tensor_mode": [(ints(9, 4), 4, {"rounding_mode": "floor"})],
    "div.Scalar_mode": [(r(4), 0.3, {"rounding_mode": "floor"})],
    "addcmul.default": [(r(3), r(2, 3), r(3), {"value": 2})],
    "lerp.Scalar": [(r(3), r(3), 0.3)],
    "lerp.Tensor": [(r(3), r(3), r(2, 3))],
    "remainder.Scalar": [(ints(9, 5), 4)],
    "remainder.Tensor": [(r(5), pos(5))],
    "pow.Tensor_Scalar": [(KINKS[:, 4:14], 2), (r(3), 3.0), (pos(3), 0.5), (pos(3), -1.5), (ints(4, 3), 2)],
    "pow.Tensor_Tensor": [
        (pos(3), r(2, 3)), (torch.zeros(4).double(), torch.tensor([0.0, 0.5, 1, 2]).double()), (ints(3, 4), ints(3, 4)),
    ],
    "pow.Scalar": [(2.0, r(3)), (10000, r(3))],
    "maximum.default": [(r(3), r(2, 3)), (KINKS, torch.zeros(1).double())],
    "minimum.default": [(r(3), r(2, 3)), (KINKS, torch.zeros(1).double())],
    "clamp.default": [(KINKS, -1.0, 3.0), (KINKS, None, 1), (KINKS, 0.5), (ints(9, 4), 2, 5)],
    "clamp.Tensor": [(r(5), torch.tensor(-0.5).double(), pos(5))],
    "clamp_min.default": [(KINKS, 0)],
    "clamp_min.Tensor": [(r(2, 5), r(5))],
    "clamp_max.default": [(KINKS, 0.5)],
    "clamp_max.Tensor": [(r(2, 5), r(5))],
    "where.self": [(B, r(4), r(3, 1)), (B, r(4), torch.tensor(1.0))],
    "where.ScalarOther": [(B, r(4), 0.0)],
    "where.ScalarSelf": [(B, 1, r(4))],
    "where.Scalar": [(B, 1.0, 0.0)],
    "masked_fill.Scalar": [(r(2, 3, 4), B, -float("inf"))],
    "masked_fill.Tensor": [(r(3, 4), B, torch.tensor(2.0).double())],
    **{f"{name}.default": [(IMAGE,)] for name in ("clone", "contiguous", "alias", "detach", "lift_fresh_copy")},
    "_to_copy.default": [(IMAGE,), (ints(3, 4), {"dtype": torch.float64})],
    "to.dtype_layout": [(IMAGE,), (ints(3, 4), {"dtype": torch.float64})],
    "to.dtype": [(IMAGE, torch.float32), (ints(3, 4), torch.float64, False, True)],
    "type_as.default": [(IMAGE, r(2)), (ints(3, 4), r(2))],
    **{
        f"{name}.default": [(IMAGE, 0.5, False)]
        for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
    },
    "copy.default": [(fixed(r(2, 3)), fixed(r(3)))],
    "sym_size.int": [(IMAGE, 2)],
    "view.default": [(IMAGE, [2, -1])],
    "_unsafe_view.default": [(IMAGE, [8, 63])],
    "reshape.default": [(IMAGE, [-1, 7])],
    "flatten.using_ints": [(IMAGE,), (IMAGE, 1, -2), (IMAGE, -1), (torch.tensor(2.0).double(),)],
    "unflatten.int": [(IMAGE, 1, [2, -1]), (IMAGE, -1, [7, 1])],
    "reshape_as.default": [(IMAGE, r(8, 63))],
    "view_as.default": [(IMAGE, r(8, 63))],
    "permute.default": [(IMAGE, [0, -1, 1, 2])],
    "transpose.int": [(IMAGE, 1, -1)],
    "t.default": [(r(2, 3),), (r(3),)],
    "squeeze.default": [(r(2, 1, 3, 1),)],
    "squeeze.dim": [(r(2, 1, 3), 1), (r(2, 1, 3), -1)],
    "squeeze.dims": [(r(1, 2, 1, 3), [0, 1, -2])],
    "unsqueeze.default": [(r(2, 3), -1), (r(2, 3), 1)],
    "expand.default": [(r(3, 1), [2, -1, 4])],
    "expand_as.default": [(r(3, 1), r(2, 3, 4))],
    "repeat.default": [(r(2, 3), [2, 1, 3])],
    "cat.default": [([r(2, 3), r(2, 1), ints(3, 2, 2)], -1)],
    "stack.default": [([r(2, 3), r(2, 3)], -1)],
    "split_with_sizes.default": [(r(2, 5), [1, 4], -1)],
    "split.Tensor": [(r(7, 2), 3), (r(2, 6), 2, 1)],
    "chunk.default": [(r(7, 2), 3), (r(2, 6), 2, -1), (r(5, 1), 4)],
    "unbind.int": [(r(2, 3), 1)],
    "slice.Tensor": [(IMAGE, 2, 1, 9223372036854775807, 3), (IMAGE, -1, -3), (IMAGE, 1, 0, -1)],
    "slice_scatter.default": [(r(2, 7), r(2, 2), 1, 1, 5, 2)],
    "select.int": [(IMAGE, 1, -1), (IMAGE, -1, 0)],
    "select_scatter.default": [(r(2, 4), r(2), 1, 2)],
    "index.Tensor": [(IMAGE, [None, None, ints(9, 3, 1), ints(7, 4)]), (r(5, 2), [ints(5, 3, 3)])],
    "index_select.default": [(IMAGE, 2, ints(9, 5))],
    "embedding.default": [(r(5, 3), ints(5, 2, 4))],
    "flip.default": [(IMAGE, [1, -1])],
    "roll.default": [(IMAGE, [2, -1], [2, 3]), (IMAGE, [5])],
    "pixel_shuffle.default": [(r(2, 12, 3, 2), 2)],
    "pixel_unshuffle.default": [(r(2, 3, 6, 4), 2)],
    "constant_pad_nd.default": [(IMAGE, [1, 0, 2, 3], 1.5), (IMAGE, [-1, 2])],
    "reflection_pad1d.default": [(r(2, 3, 5), [2, 1])],
    "reflection_pad2d.default": [(IMAGE, [2, 1, 0, 3])],
    "replication_pad1d.default": [(r(2, 3, 5), [2, 1])],
    "replication_pad2d.default": [(IMAGE, [2, 1, 0, 3])],
    "pad.default": [(IMAGE, [2, 1, 0, 3], m) for m in ("constant", "reflect", "replicate", "circular")]
    + [(IMAGE, [1, 1], "constant", 2.5)],
    "arange.default": [(5,), (2.5,), (4, {"dtype": torch.float64})],
    "arange.start": [(2, 7)],
    "arange.start_step": [(0, 5, 2), (0.5, 3, 0.25), (7, 0, -2)],
    "full.default": [([2, 3], 1.5), ([2], 1)],
    "full_like.default": [(r(2, 3), 2), (r(2), 1.0, {"dtype": torch.float32})],
    "fill.Scalar": [(r(2, 3), 2)],
    "fill.Tensor": [(r(2, 3), torch.tensor(1.5))],
    "scalar_tensor.default": [(1.5,), (2, {"dtype": torch.float64})],
    **{f"{name}.default": [([2, 3], {"dtype": torch.int64})] for name in ("zeros", "ones")},
    **{f"{name}_like.default": [(r(2, 3),), (B,)] for name in ("zeros", "ones")},
    "tril.default": [(r(4, 5),), (r(3, 3), 1)],
    "triu.default": [(r(4, 5), -1)],
    "convolution.default": [
        conv(IMAGE, r(6, 4, 3, 2), r(6), (2, 3), (1, 2), (2, 1)),
        conv(IMAGE, r(6, 4, 1, 1), r(6), (2, 3)),
        conv(IMAGE, r(6, 4, 1, 1), padding=(1, 1)),
        conv(IMAGE, r(6, 2, 3, 3), None, (2, 2), (1, 1), groups=2),
        conv(IMAGE, r(4, 1, 3, 2), r(4), (2, 3), (1, 2), (2, 1), groups=4),
        conv(IMAGE, r(8, 1, 3, 3), r(8), groups=4),
        conv(IMAGE, r(4, 1, 9, 7), groups=4),
        conv(IMAGE, r(4, 6, 3, 2), r(6), (2, 3), (1, 2), (2, 1), (1, 2)),
        conv(IMAGE, r(4, 3, 4, 4), r(6), (2, 2), (1, 1), out=(0, 0), groups=2),
        conv(r(2, 4, 9), r(5, 4, 3), r(5), (2,), (1,), (2,)),
        conv(r(1, 2, 4, 5, 6), r(3, 2, 2, 3, 3), None, (1, 2, 1), (0, 1, 1), (1, 1, 2)),
    ],
    "conv1d.default": [(r(2, 4, 9), r(6, 2, 3), r(6), [2], [1], [2], 2)],
    "conv1d.padding": [(r(2, 4, 9), r(6, 4, 4), None, [1], "same")],
    "conv2d.default": [
        (IMAGE, r(6, 4, 3, 2), r(6), [2, 3], [1, 2], [2, 1]), (IMAGE, r(4, 1, 3, 3), None, [1, 1], [1], [1, 1], 4),
        (r(4, 9, 7), r(6, 4, 3, 2), r(6)),
    ],
    "conv2d.padding": [
        (IMAGE, r(6, 4, 3, 2), r(6), [1, 1], "same", [2, 3]), (IMAGE, r(4, 1, 2, 3), None, [1, 1], "same", [1, 1], 4),
        (IMAGE, r(6, 4, 3, 2), r(6), [2, 2], "valid"), (r(4, 9, 7), r(6, 4, 3, 3), r(6), [1, 1], "same"),
    ],
    "conv3d.default": [(r(1, 2, 4, 5, 6), r(3, 2, 2, 3, 3), None, [1, 2, 1], [0, 1, 1], [1, 1, 2])],
    "conv3d.padding": [(r(1, 2, 4, 5, 6), r(3, 2, 2, 3, 3), None, [1, 1, 1], "same")],
    "conv_transpose1d.default": [(r(2, 4, 9), r(4, 3, 3), r(6), [2], [1], [1], 2)],
    "conv_transpose2d.input": [
        (IMAGE, r(4, 6, 3, 2), r(6), [2, 3], [1, 2], [1, 2], 1, [2, 1]), (r(4, 9, 7), r(4, 6, 3, 2)),
    ],
    "conv_transpose3d.input": [(r(1, 2, 3, 4, 5), r(2, 3, 2, 2, 2), r(3), [2, 1, 2])],
    **{
        f"max_pool{n}d.default": [(r(2, 3, *(9, 8, 7)[:n]), [3] * n), (r(2, 3, *(6, 7, 8)[:n]), [2] * n, [3] * n)]
        for n in (1, 3)
    },
    "max_pool2d.default": [
        (IMAGE, [3, 3], [2, 2], [1, 1]),
        (IMAGE, [3, 2], [2, 3], [1, 0]),
        (IMAGE, [2], [2], [0], [1], True),
        (r(1, 2, 128, 5), [3, 3], [2, 2], [0, 0], [1, 1], True),
        (r(1, 2, 5, 6), [2, 2], [3, 3], [1, 1], [1, 1], True),
        (torch.zeros(1, 1, 5, 5).double(), [3, 3], [2, 2]),
    ],
    "max_pool2d_with_indices.default": [(IMAGE, [3, 3], [2, 2], [1, 1])],
    "max_pool3d_with_indices.default": [(r(2, 2, 5, 6, 7), [2, 3, 2], [2, 2, 2], [1, 1, 0])],
    "avg_pool1d.default": [(r(2, 3, 9), [4], [3], [1])],
    "avg_pool2d.default": [
        (IMAGE, [3, 3], [2, 2], [1, 1]),
        (IMAGE, [2]),
        (IMAGE, [3, 2], [2, 3], [1, 1], True),
        (IMAGE, [3, 3], [2, 2], [1, 1], True, False),
        (r(1, 2, 5, 6), [2, 2], [3, 3], [1, 1], True, True),
        (IMAGE, [3, 3], [2, 2], [1, 1], False, True, 5),
    ],
    "avg_pool3d.default": [(r(2, 2, 5, 6, 7), [5, 1, 1], [1, 1, 1], [2, 0, 0])],
    "adaptive_avg_pool1d.default": [(r(2, 3, 7), [3])],
    "adaptive_avg_pool2d.default": [(IMAGE, [1, 1]), (IMAGE, [3, 5]), (IMAGE, [10, 7])],
    "_adaptive_avg_pool2d.default": [(IMAGE, [4, 3])],
    "adaptive_avg_pool3d.default": [(r(1, 2, 5, 6, 7), [2, 3, 4])],
    "adaptive_max_pool2d.default": [
        (IMAGE, [4, 3]), (IMAGE, [1, 1]), (torch.zeros(1, 2, 5, 6).double(), [3, 4]),
        (ints(3, 1, 2, 9, 7).double(), [4, 2]),
    ],
    "adaptive_max_pool3d.default": [(r(1, 2, 5, 6, 7), [2, 3, 4])],
    "upsample_linear1d.vec": [(r(2, 3, 5), [8], False, None)],
    "upsample_trilinear3d.vec": [(r(1, 2, 3, 4, 5), [5, 4, 9], True, None)],
    **{
        f"upsample_{kind}2d.vec": [
            (IMAGE, [18, 14], False, None),
            (IMAGE, [13, 1], True, None),
            (IMAGE, [4, 5], False, None),
            (IMAGE, None, False, [1.7, 0.6]),
            (IMAGE, None, True, [1.7, 2.3]),
        ]
        for kind in ("bilinear", "bicubic")
    },
    "upsample_nearest1d.vec": [(r(2, 3, 5), [8], None)],
    "upsample_nearest2d.vec": [
        (IMAGE, [18, 14], None),
        (IMAGE, [13, 5], None),
        (IMAGE, None, [2.0, 3.0]),
        (IMAGE, None, [1.7, 0.6]),
    ],
    "upsample_nearest3d.vec": [(r(1, 2, 3, 4, 5), [6, 4, 7], None)],
    "_native_batch_norm_legit_no_training.default": [
        (IMAGE, pos(4), r(4), fixed(r(4)), fixed(pos(4)), 0.1, 1e-3),
        (r(3, 4), None, None, fixed(r(4)), fixed(pos(4)), 0.1, 1e-5),
        (IMAGE, pos(4), None, fixed(r(4)), fixed(pos(4)), 0.1, 1e-5),
    ],
    "_native_batch_norm_legit.no_stats": [(r(1, 8, 5, 6), pos(8), r(8), True, 0.1, 1e-5)],
    "batch_norm.default": [
        (IMAGE, pos(4), r(4), fixed(r(4)), fixed(pos(4)), False, 0.1, 1e-3, True),
        (IMAGE, None, None, fixed(r(4)), fixed(pos(4)), False, 0.1, 1e-5, False),
        (r(1, 6, 8), pos(6), None, None, None, True, 0.0, 1e-5, False),
    ],
    "instance_norm.default": [
        (IMAGE, pos(4), r(4), None, None, True, 0.1, 1e-3, True),
        (r(2, 3, 5), None, None, None, None, True, 0.1, 1e-5, True),
        (IMAGE, pos(4), r(4), fixed(r(4)), fixed(pos(4)), False, 0.1, 1e-5, True),
    ],
    "rms_norm.default": [(IMAGE, [7], r(7)), (IMAGE, [9, 7], r(9, 7), 1e-3), (torch.zeros(2, 3).double(), [3])],
    "layer_norm.default": [(IMAGE, [9, 7], r(9, 7), r(9, 7), 1e-3), (IMAGE, [7])],
    "native_layer_norm.default": [(IMAGE, [7], r(7), None, 1e-5)],
    "group_norm.default": [(IMAGE, 2, r(4), r(4), 1e-3), (IMAGE, 1)],
    "native_group_norm.default": [(IMAGE, r(4), r(4), 2, 4, 63, 2, 1e-5)],
    "mm.default": [(r(2, 3), r(3, 4))],
    "bmm.default": [(r(2, 3, 4), r(2, 4, 5))],
    "matmul.default": [(r(2, 1, 3, 4), r(5, 4, 2)), (r(3, 4), r(4)), (r(4), r(2, 4, 3))],
    "addmm.default": [(r(4), r(2, 3), r(3, 4)), (r(2, 1), r(2, 3), r(3, 4), {"beta": 2, "alpha": 0.5})],
    "baddbmm.default": [(r(2, 1, 4), r(2, 3, 5), r(2, 5, 4))],
    "linear.default": [(r(2, 5, 3), r(4, 3), r(4)), (r(3), r(4, 3))],
    "scaled_dot_product_attention.default": [
        (r(2, 3, 5, 4), r(2, 3, 6, 4), r(2, 3, 6, 7)),
        (r(2, 3, 5, 4), r(2, 3, 5, 4), r(2, 3, 5, 4), None, 0.0, True),
        (r(2, 3, 5, 4), r(2, 3, 6, 4), r(2, 3, 6, 4), r(5, 6), {"scale": 0.3}),
        (r(2, 5, 4), r(2, 6, 4), r(2, 6, 4), torch.ones(5, 6).tril().bool()),
        (r(2, 5, 4), r(2, 6, 4), r(2, 6, 4), torch.ones(5, 6).tril(-1).bool()),
        (r(1, 2, 5, 4), r(1, 2, 5, 4), r(1, 2, 5, 4), fixed(torch.ones(5, 5).double().tril(-1).log())),
        (r(2, 4, 5, 4), r(2, 2, 5, 4), r(2, 2, 5, 4), {"enable_gqa": True}),
    ],
    "softmax.int": [(r(2, 3, 4), 1), (1000 * r(2, 3), -1), (r(2, 3), 0, torch.float32), (ints(3, 4), 0, torch.float64)],
    "_softmax.default": [(r(2, 3, 4), -1, False)],
    "log_softmax.int": [(r(2, 3, 4), 1), (1000 * r(2, 3), -1), (r(2, 3), 0, torch.float32)],
    "logsumexp.default": [
        (IMAGE, [1]), (IMAGE, [2, -1], True), (1000 * r(2, 3), [0]), (torch.full((2, 3), -math.inf).double(), [1]),
    ],
    "_log_softmax.default": [(r(2, 3, 4), -1, False)],
    **{f"{name}.default": [(IMAGE,)] for name in ("mean", "sum")},
    "mean.dim": [(IMAGE, [2, -1], True), (IMAGE, [1])],
    "sum.dim_IntList": [(IMAGE, [2, -1], True), (IMAGE, None), (B, [1])],
    "amax.default": [(IMAGE, [1, 2]), (IMAGE,), (torch.zeros(2, 3).double(), [1], True)],
    "max.default": [(IMAGE,), (torch.zeros(2, 3).double(),)],
    "min.default": [(IMAGE,)],
    "amin.default": [(IMAGE, [1, 2], True)],
    **{f"{name}.dim": [(IMAGE, 1), (torch.zeros(2, 3).double(), -1, True)] for name in ("max", "min")},
    "argmax.default": [(IMAGE, 2), (IMAGE,), (IMAGE, 1, True)],
    **{f"{name}.default": [(IMAGE,), (IMAGE, False)] for name in ("var", "std", "var_mean", "std_mean")},
    **{
        f"{name}.dim": [(IMAGE, [2, 3]), (IMAGE, [1], False, True), (torch.ones(2, 3).double(), [1])]
        for name in ("var", "std", "var_mean", "std_mean")
    },
    **{
        f"{name}.correction": [
            (IMAGE, [1, 2]), (IMAGE, None, {"correction": 0}), (IMAGE, [3], {"keepdim": True}),
            (torch.ones(2, 3).double(), [1]), (IMAGE, [2], {"correction": 0.5}),
        ]
        for name in ("var", "std", "var_mean", "std_mean")
    },
    "linalg_vector_norm.default": [
        (IMAGE,), (IMAGE, 1, [1]), (IMAGE, 3.0, [2, 3], True), (torch.zeros(2, 3).double(), 2, [1]),
        (IMAGE, float("inf"), [1]), (torch.zeros(2, 3).double(), 3, [1]),
        (r(2, 3).float(), 1, [1], {"dtype": torch.float64}),
    ],
    "cumsum.default": [
        (IMAGE, -1), (IMAGE, 1, {"dtype": torch.float32}), (ints(3, 4), 0), (ints(3, 4).int(), 0), (B, 1),
        (ints(3, 4), 0, {"dtype": torch.float64}),
    ],
    "any.dim": [(B, 1), (B, 0, True)],
    **MORE_CASES,
}  # fmt: skip
EMPTY = {
    "empty.memory_format": ([2, 3], {"dtype": torch.float64}),
    "empty_like.default": (B,),
    "empty_permuted.default": ([2, 3], [1, 0]),
}
REFUSED = {f"fractional_max_pool{n}d.default": (r(1, 2, 8, 8), [2, 2], [4, 4], r(1, 2, 2)) for n in (2, 3)}


NAMES = {name for name in OPS if name.startswith("aten.")}  # before any test registers more


def test_every_operation_has_a_case():
    known = {f"aten.{name}" for name in (*CASES, *EMPTY, *REFUSED)}
    assert known == NAMES


@pytest.mark.parametrize("name", EMPTY)
def test_arrays_without_content_are_zero(name):
    *args, kwargs = EMPTY[name] if isinstance(EMPTY[name][-1], dict) else (*EMPTY[name], {})
    expected = overload(name)(*args, **kwargs)
    with jax.enable_x64(True):
        actual = OPS[f"aten.{name}"](*map(_to_jax, args), **{k: _to_jax(v) for k, v in kwargs.items()})
    np.testing.assert_array_equal(actual, np.zeros(expected.shape, expected.numpy().dtype))
    assert actual.dtype == expected.numpy().dtype


@pytest.mark.parametrize("name", REFUSED)
def test_random_windows_are_refused(name):
    with pytest.raises(JaxTransferError, match="draws its windows at random"):
        OPS[f"aten.{name}"](*REFUSED[name])


def overload(name):
    packet, _, overload = name.removeprefix("aten.").partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


@pytest.mark.parametrize("name", CASES)
def test_every_argument_is_accepted(name):
    """By place and, where it has a default, by name, as PyTorch's schema of the operation has it."""
    storage = {"device", "layout", "memory_format", "pin_memory", "non_blocking", "requires_grad"}
    schema = overload(name)._schema.arguments
    signature = inspect.signature(OPS[f"aten.{name}"])
    keywords = {a.name for a in schema if a.kwarg_only} - storage
    signature.bind(*(a.name for a in schema if not a.kwarg_only), **dict.fromkeys(keywords))
    required = [a.name for a in schema if not a.has_default_value() and not a.kwarg_only]
    optional = {a.name for a in schema if a.has_default_value()} - storage
    signature.bind(*required, **dict.fromkeys(optional | keywords))


@pytest.mark.parametrize("name", CASES)
def test_results_that_share_memory_are_known(name):
    """On this depends whether a change in place concerns other values."""
    node = torch.fx.Graph().create_node("call_function", overload(name), (torch.fx.Graph().placeholder("x"),))
    if shares_memory_with(node) is not None:
        return
    for args in CASES[name]:
        *args, kwargs = args if isinstance(args[-1], dict) else (*args, {})
        memory = {a.untyped_storage().data_ptr() for a in jax.tree.leaves(args) if isinstance(a, torch.Tensor)}
        results = jax.tree.leaves(overload(name)(*args, **kwargs))
        assert not any(y.untyped_storage().data_ptr() in memory for y in results if isinstance(y, torch.Tensor))


def _to_jax(leaf):
    if isinstance(leaf, torch.Tensor):
        return jnp.asarray(leaf.numpy())
    return str(leaf).removeprefix("torch.") if isinstance(leaf, torch.dtype) else leaf


def _flat(tree):
    return jax.tree.flatten(tree, is_leaf=lambda leaf: leaf is None)


def _is_float(leaf):
    return isinstance(leaf, jax.Array | torch.Tensor) and ("float" in str(leaf.dtype) or "complex" in str(leaf.dtype))


def _as_real(y):
    """Real and imaginary parts of complex arrays, by which both libraries differentiate in the same way."""
    if isinstance(y, torch.Tensor) and y.is_complex():
        return torch.view_as_real(y.resolve_conj())
    if isinstance(y, jax.Array) and jnp.iscomplexobj(y):
        return jnp.stack([y.real, y.imag], -1)
    return y


def _as_complex(y):
    return torch.view_as_complex(y) if isinstance(y, torch.Tensor) else jax.lax.complex(y[..., 0], y[..., 1])


class _Case:
    """One list of arguments, and PyTorch's results and gradients for it."""

    def __init__(self, name, args):
        self.op = OPS[f"aten.{name}"]
        self.leaves, self.tree = _flat(list(args))
        self.at = [i for i, leaf in enumerate(self.leaves) if _is_float(leaf) and id(leaf) not in FIXED]
        floats = [_as_real(self.leaves[i]).clone().requires_grad_() for i in self.at]
        results = self._call(overload(name), self.leaves, floats)
        # Of statistics that PyTorch also returns, and no network reads, the table has none.
        results = results[: len(jax.eval_shape(self._run_op, self.inputs()))]
        self.expected = [y.detach().numpy() if isinstance(y, torch.Tensor) else y for y in results]
        self.cotangents = self.gradients = None
        results = [y for y in results if _is_float(y)]
        if floats and results and results[0].requires_grad:
            self.cotangents = [
                torch.tensor(np.random.default_rng(1).normal(size=y.shape), dtype=y.dtype) for y in results
            ]
            gradients = torch.autograd.grad(results, floats, self.cotangents, allow_unused=True)
            self.gradients = [
                np.zeros(x.shape) if g is None else g.numpy() for x, g in zip(floats, gradients, strict=True)
            ]

    def _call(self, function, leaves, floats):
        leaves = list(leaves)
        for i, value in zip(self.at, floats, strict=True):
            leaves[i] = _as_complex(value) if leaves[i].dtype == torch.complex128 else value
        if function is self.op:
            leaves = [_to_jax(leaf) for leaf in leaves]
        args = jax.tree.unflatten(self.tree, leaves)
        kwargs = args.pop() if args and isinstance(args[-1], dict) else {}
        results = function(*args, **kwargs)
        return [_as_real(y) for y in (results if isinstance(results, list | tuple) else [results])]

    def _run_op(self, floats):
        return self._call(self.op, self.leaves, floats)

    def run(self, floats):
        """JAX's results and gradients."""
        results = self._run_op(floats)
        if self.cotangents is None:
            return results, None
        cotangents = [jnp.asarray(c.numpy()) for c in self.cotangents]

        def differentiable(*floats):
            return [y for y in self._run_op(floats) if _is_float(y)]

        return results, jax.vjp(differentiable, *floats)[1](cotangents)

    def inputs(self):
        return [_to_jax(_as_real(self.leaves[i])) for i in self.at]

    def check(self, results, gradients):
        dtypes = {a.dtype for a in (*self.expected, *(self.gradients or ())) if isinstance(a, np.ndarray)}
        loose = 1e4 if np.dtype("float32") in dtypes else 1
        for result, expected in zip(results, self.expected, strict=True):
            assert np.shape(result) == np.shape(expected)
            if isinstance(expected, np.ndarray):
                assert result.dtype == expected.dtype
            np.testing.assert_allclose(result, expected, rtol=1e-9 * loose, atol=1e-11 * loose)
        for result, expected in zip(gradients or [], self.gradients or [], strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-7 * loose, atol=1e-10 * loose)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_operation_agrees_with_pytorch(name):
    with jax.enable_x64(True):
        cases = [_Case(name, args) for args in CASES[name]]
        # One compilation for all cases of an operation, and no more optimisation than needed: it is most of the time.
        run = jax.jit(
            lambda inputs: [case.run(x) for case, x in zip(cases, inputs, strict=True)],
            compiler_options={"xla_backend_optimization_level": 0},
        )
        for case, (results, gradients) in zip(cases, run([case.inputs() for case in cases]), strict=True):
            case.check(results, gradients)


def test_detach_stops_the_gradient():
    assert jax.grad(lambda x: OPS["aten.detach.default"](x) * 2.0)(1.0) == 0.0
