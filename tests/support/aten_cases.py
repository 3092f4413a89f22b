"""Arguments on which the rarer operations of the table are compared with PyTorch, by theme."""

import numpy as np
import torch

_rng = np.random.default_rng(0)


def r(*shape):
    return torch.tensor(_rng.normal(size=shape))


def pos(*shape):
    return torch.tensor(_rng.uniform(0.5, 2.0, size=shape))


def unit(*shape):
    return torch.tensor(_rng.uniform(-0.9, 0.9, size=shape))


FIXED = set()


def fixed(tensor):
    """Marks a tensor that PyTorch does not differentiate by."""
    FIXED.add(id(tensor))
    return tensor


def ints(high, *shape):
    return torch.tensor(_rng.integers(0, high, size=shape))


# The points where some activation has a kink, and values far out where exponentials overflow.
KINKS = torch.tensor([[-800.0, -30, -6, -3, -1, -0.5, -0.1, 0, 0.1, 0.5, 1, 3, 6, 19, 21, 30, 800]]).double()
IMAGE = r(2, 4, 9, 7)
B = ints(2, 3, 4).bool()
ODD = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1.5]).double()
CORNERS = torch.tensor([0.0, -0.0, 1, -1, 0, 2]).double()
KNOTS = torch.tensor([-2.0, -0.5, 0, 0.5, 3]).double()
TIES = torch.tensor([[1.0, 0, 2, 2, 0], [3, 3, 3, 1, 2]]).double()
ORDER = torch.argsort(r(2, 4, 9, 7), 2)
COMPLEX = torch.complex(r(4, 3), r(4, 3))
SQUARE = r(2, 3, 3) + 3 * torch.eye(3)
POSITIVE = SQUARE @ SQUARE.mT  # definite
BITS = {
    "Tensor": (ints(9, 4), ints(5, 4)), "Scalar": (ints(9, 4), 3), "Scalar_Tensor": (5, ints(5, 4)),
    "Tensor_Scalar": (ints(9, 4), 3),
}  # fmt: skip


def lstm_weights():
    """Of both directions, from 3 features to 4."""
    for _ in range(2):
        yield from (r(16, 3), r(16, 4), r(16), r(16))


def unpooled(n):
    """Values, and their places in a larger array."""
    x, size = r(2, 3, *(6, 4, 8)[:n]), (6, 4, 8)[:n]
    pool = torch.nn.functional.max_pool2d if n == 2 else torch.nn.functional.max_pool3d
    values, places = pool(x, 2, return_indices=True)
    return values, places, list(size)


CASES = {
    # --- elementary
    **{
        f"{name}.default": [(KINKS[:, 3:15],), (r(2, 3),)]
        for name in "tan sinh cosh asinh exp2 erfc trunc fix frac isnan isinf signbit i0 special_i0e angle".split()
    },
    **{f"{name}.default": [(unit(2, 5),)] for name in "asin acos atanh erfinv".split()},
    **{f"{name}.default": [(pos(2, 5),)] for name in "lgamma digamma".split()},
    "log10.default": [(pos(2, 5),), (ints(3, 4) + 1,)],
    "acosh.default": [(1 + pos(2, 5),)],
    "nan_to_num.default": [(ODD,), (ODD, 1.0, 2.0, -2.0), (ints(3, 4),)],
    "atan2.default": [(r(3, 1), r(4)), (CORNERS, CORNERS.flip(0)), (ints(5, 3) + 1, ints(5, 3) + 1)],
    "hypot.default": [(r(3, 1), r(4))],
    "copysign.Tensor": [(KINKS, KINKS.flip(1)), (ints(3, 4), r(4))],
    "copysign.Scalar": [(KINKS, -1.0)],
    "fmod.Tensor": [(5 * r(2, 5), r(5)), (ints(9, 4) - 4, ints(3, 4) + 1)],
    "fmod.Scalar": [(5 * r(2, 5), 0.7), (ints(9, 4) - 4, 3)],
    **{
        f"{name}.default": [(r(3), r(2, 3)), (KINKS, torch.zeros(1).double()), (ODD, r(5))]
        for name in ("fmax", "fmin")
    },
    **{f"{name}.default": [(3 * r(3, 1), 3 * r(4)), (KINKS, KINKS)] for name in ("logaddexp", "logaddexp2")},
    "nextafter.default": [(fixed(r(3)), fixed(r(3)))],
    "heaviside.default": [(fixed(KINKS.clone()), fixed(torch.tensor([0.5]).double()))],
    "xlogy.Tensor": [(torch.tensor([0, 1, -2.0]).double(), torch.tensor([2, 3, 0.5]).double()), (ints(3, 4), pos(4))],
    "xlogy.Scalar_Other": [(r(3), 2.0)],
    "xlogy.Scalar_Self": [(2.0, pos(3)), (0, pos(3))],
    "ldexp.Tensor": [(r(3), ints(4, 3))],
    "logical_xor.default": [(B, ~B[:1]), (ints(2, 3, 4), B)],
    **{f"{name}.default": [(ints(20, 5), ints(20, 5) + 1)] for name in ("gcd", "lcm")},
    **{f"bitwise_{name}.{kind}": [BITS[kind]] for name in ("and", "or") for kind in ("Scalar", "Scalar_Tensor")},
    **{f"bitwise_xor.{kind}": [BITS[kind]] for kind in ("Tensor", "Scalar", "Scalar_Tensor")},
    **{
        f"bitwise_{name}_shift.{kind}": [BITS[kind]]
        for name in ("left", "right")
        for kind in ("Tensor", "Tensor_Scalar", "Scalar_Tensor")
    },
    "isin.Tensor_Tensor": [(ints(9, 2, 4), ints(9, 3)), (ints(9, 4), ints(9, 3), {"invert": True})],
    "isin.Tensor_Scalar": [(ints(3, 4), 1)],
    "isin.Scalar_Tensor": [(1, ints(3, 4))],
    "addcdiv.default": [(r(3), r(2, 3), pos(3), {"value": 2})],
    "bucketize.Tensor": [(KINKS, KNOTS), (KNOTS, KNOTS, {"right": True, "out_int32": True})],
    "bucketize.Scalar": [(0.3, KNOTS)],
    "searchsorted.Tensor": [
        (KNOTS, KINKS), (KNOTS, KNOTS, {"side": "right"}), (r(2, 5).sort(1)[0], r(2, 3)),
        (KNOTS.flip(0), r(3), {"sorter": torch.arange(5).flip(0)}),
    ],
    "searchsorted.Scalar": [(KNOTS, 0.3)],
    # --- ordering
    "sort.default": [(IMAGE,), (IMAGE, 1, True), (torch.tensor(2.0).double(),)],
    "sort.stable": [(TIES, {"stable": True}), (TIES, {"stable": True, "dim": 0, "descending": True})],
    "argsort.default": [(IMAGE, 2), (IMAGE, 1, True)],
    "argsort.stable": [(TIES, {"stable": True, "dim": 1, "descending": True})],
    "topk.default": [(IMAGE, 3), (IMAGE, 2, 1, False), (IMAGE, 1, 2, True, False), (torch.tensor(2.0).double(), 1)],
    "kthvalue.default": [(IMAGE, 3), (IMAGE, 2, 1, True)],
    "median.dim": [(IMAGE, 2), (IMAGE, 1, True)],
    "median.default": [(IMAGE,), (r(3, 2),), (torch.tensor([1, 2, 2, 2, 3.0]).double(),), (ints(9, 5),)],
    "argmin.default": [(IMAGE, 2), (IMAGE,), (IMAGE, 1, True)],
    "aminmax.default": [(IMAGE,), (TIES, {"dim": 1}), (IMAGE, {"dim": 2, "keepdim": True})],
    **{f"{name}.other": [(r(3), r(2, 3))] for name in ("max", "min")},
    **{f"{name}.default": [(B,), (IMAGE,)] for name in ("any", "all")},
    **{f"{name}.dims": [(B, [1]), (B, [0, 1], True), (B,)] for name in ("any", "all")},
    "all.dim": [(B, 1), (B, 0, True)],
    "prod.default": [(r(2, 3),), (ints(3, 4),), (torch.tensor([0, 2, 3.0]).double(),), (B, {"dtype": torch.float64})],
    "prod.dim_int": [(IMAGE, 1), (TIES, 1, True), (ints(3, 4, 2).int(), 0)],
    "cumprod.default": [(IMAGE, 2), (TIES, 1), (ints(3, 4), 0), (r(3), 0, {"dtype": torch.float32})],
    "logcumsumexp.default": [(IMAGE, 2), (r(3), 0)],
    **{f"{name}.default": [(IMAGE, 2), (TIES, 1), (torch.tensor(2.0).double(), 0)] for name in ("cummax", "cummin")},
    # --- indexing
    "gather.default": [(IMAGE, 2, ints(9, 2, 3, 5, 7)), (r(5), 0, ints(5, 3)), (r(5), 0, torch.tensor(2))],
    "take.default": [(IMAGE, ints(100, 2, 3))],
    "scatter.src": [(IMAGE, 2, ORDER[:, :, :4], r(2, 4, 4, 7)), (r(5), 0, torch.tensor([3, 1]), r(2))],
    "scatter.value": [(IMAGE, 1, ints(4, 2, 2, 5, 7), 2.0)],
    "scatter_add.default": [(IMAGE, 1, ints(4, 2, 6, 5, 7), r(2, 6, 5, 7))],
    "scatter.reduce": [(fixed(r(2, 3)), 1, ints(3, 2, 4), fixed(r(2, 4)), {"reduce": "add"})],
    "scatter.value_reduce": [(fixed(r(2, 3)), 1, ints(3, 2, 4), 2.0, {"reduce": "multiply"})],
    "scatter_reduce.two": [
        (r(3, 4), 1, ints(4, 3, 6), r(3, 6), reduce, {"include_self": own})
        for reduce in ("sum", "mean", "amax", "amin", "prod") for own in (True, False)
    ] + [(torch.zeros(4).double(), 0, ints(4, 6), torch.zeros(6).double(), "amax")],
    "index_add.default": [
        (IMAGE, 2, ints(9, 4), r(2, 4, 4, 7), {"alpha": 2}), (IMAGE, -1, torch.tensor([1]), r(2, 4, 9, 1)),
    ],
    "index_copy.default": [(IMAGE, 1, torch.tensor([2, 0]), r(2, 2, 9, 7))],
    "index_fill.int_Scalar": [(IMAGE, 1, torch.tensor([2, 0]), 2)],
    "index_fill.int_Tensor": [(IMAGE, 1, torch.tensor([2, 0]), fixed(torch.tensor(1.5).double()))],
    **{
        f"{name}.default": [
            (IMAGE, [None, None, ints(9, 3, 1), ints(7, 4)], r(3, 4), True),
            (IMAGE, [None, torch.tensor([2, 0])], r(2, 4, 2, 9, 7)[:, 0]),
            (IMAGE, [torch.tensor([1, 0]), None, torch.tensor([2, 5])], r(4, 7)),
            (r(5, 2), [ints(5, 3, 3)], r(2), True),
        ]
        for name in ("index_put", "_unsafe_index_put")
    },
    "masked_scatter.default": [(r(2, 3, 4), B, r(30)), (r(4), B, r(30))],
    "nonzero_static.default": [(B, {"size": 5}), (B, {"size": 20, "fill_value": 0})],
    "repeat_interleave.self_int": [(IMAGE, 2, 1), (r(2, 3), 3)],
    "diagonal.default": [(r(3, 4),), (IMAGE, 1, 2, -1), (IMAGE, -2, 3, 1)],
    "diagonal_scatter.default": [(r(3, 4), r(3)), (r(2, 3, 4), r(2, 3), 1, 1, 2), (r(4, 3), r(3), -1)],
    "as_strided.default": [(r(3, 4), [2, 3], [4, 1]), (r(3, 4), [2, 2, 2], [1, 2, 3], 2), (r(3, 4), [], [], 5)],
    "as_strided_scatter.default": [(fixed(r(3, 4)), r(2, 2), [2, 2], [5, 1], 2)],
    "unfold.default": [(IMAGE, 2, 3, 2), (IMAGE, -1, 4, 3), (r(5), 0, 5, 1)],
    **{f"{name}_indices.default": [(3, 4), (4, 3, 1), (3, 3, -1, {"dtype": torch.int32})] for name in ("tril", "triu")},
    "_embedding_bag.default": [
        (r(5, 3), ints(5, 7), torch.tensor([0, 2, 2, 5]), False, mode) for mode in (0, 1, 2)
    ] + [
        (r(5, 3), ints(5, 7), torch.tensor([0, 2, 7]), False, 0, False, r(7), True),
        (r(5, 3), torch.tensor([0, 1, 2, 1]), torch.tensor([0, 2]), False, 1, False, None, False, 1),
    ],
    # --- windows
    "max_unpool2d.default": [unpooled(2)],
    "max_unpool3d.default": [(*unpooled(3), [2, 2, 2], [0, 0, 0])],
    "im2col.default": [(IMAGE, [3, 2], [1, 2], [1, 0], [2, 1]), (IMAGE[0], [2, 2], [1, 1], [0, 0], [1, 1])],
    "col2im.default": [
        (r(2, 4 * 6, 5 * 6), [9, 7], [3, 2], [1, 1], [1, 0], [2, 1]),
        (r(3 * 4, 8 * 6), [9, 7], [2, 2], [1, 1], [0, 0], [1, 1]),
        (r(2, 4 * 4, 7 * 5), [9, 7], [2, 2], [2, 2], [0, 0], [1, 1]),
    ],
    # --- sampling
    **{
        f"_upsample_{kind}2d_aa.{overload}": [
            (IMAGE, [4, 5], False, *rest), (IMAGE, [13, 3], True, *rest), (IMAGE, [1, 7], True, *rest),
        ] + ([(IMAGE, None, False, [0.4, 1.7])] if overload == "vec" else [(IMAGE, [3, 11], False, 0.4, 1.7)])
        for kind in ("bilinear", "bicubic")
        for overload, rest in (("default", ()), ("vec", (None,)))
    },
    "_upsample_nearest_exact1d.vec": [(r(2, 3, 5), [8], None)],
    "_upsample_nearest_exact2d.vec": [(IMAGE, [4, 13], None), (IMAGE, None, [1.7, 0.6])],
    "_upsample_nearest_exact3d.vec": [(r(1, 2, 3, 4, 5), [6, 3, 7], None)],
    "affine_grid_generator.default": [(r(2, 2, 3), [2, 3, 4, 5], corners) for corners in (True, False)]
    + [(r(2, 3, 4), [2, 3, 4, 1, 5], False)],
    "grid_sampler.default": [(IMAGE, 2 * unit(2, 3, 5, 2), 0, 0, False)],
    "grid_sampler_2d.default": [
        (IMAGE, 2.2 * unit(2, 3, 5, 2), mode, padding, corners)
        for mode in (0, 1, 2) for padding in (0, 1, 2) for corners in (True, False)
    ],
    "grid_sampler_3d.default": [
        (r(1, 2, 3, 4, 5), 1.5 * unit(1, 2, 3, 2, 3), mode, padding, False) for mode in (0, 1) for padding in (0, 1, 2)
    ],
    # --- spectral
    "complex.default": [(r(3), r(2, 3))],
    "polar.default": [(pos(3), r(2, 3))],
    "view_as_complex.default": [(r(3, 2),)],
    **{f"{name}.default": [(COMPLEX,)] for name in ("view_as_real", "real", "imag", "conj", "_conj")},
    **{
        f"{name}.default": [(COMPLEX,), (r(3),)]
        for name in ("_conj_physical", "conj_physical", "resolve_conj", "resolve_neg")
    },
    "_fft_c2c.default": [(COMPLEX, [1], 0, True), (COMPLEX, [0, 1], 1, False), (COMPLEX, [0], 2, False)],
    "_fft_r2c.default": [(IMAGE, [2, 3], 0, True), (IMAGE, [1], 1, False), (IMAGE, [3, 0], 2, True)],
    "_fft_c2r.default": [(COMPLEX, [1], 2, 5), (COMPLEX, [0, 1], 0, 4)],
    # --- recurrent
    "lstm.input": [
        (r(2, 5, 3), [r(2, 2, 4), r(2, 2, 4)], list(lstm_weights()), True, 1, 0.0, False, True, True),
        (r(5, 2, 3), [r(1, 2, 2), r(1, 2, 4)], [r(16, 3), r(16, 2), r(2, 4)], False, 1, 0.0, False, False, False),
    ],
    "gru.input": [
        (
            r(2, 5, 3), r(2, 2, 4), [r(12, 3), r(12, 4), r(12), r(12), r(12, 4), r(12, 4), r(12), r(12)], True, 2, 0.0,
            False, False, True,
        ),
        (r(5, 2, 3), r(2, 2, 4), [r(12, 3), r(12, 4), r(12, 3), r(12, 4)], False, 1, 0.0, False, True, False),
    ],
    **{
        f"rnn_{name}.input": [
            (r(2, 5, 3), r(1, 2, 4), [r(4, 3), r(4, 4), r(4), r(4)], True, 1, 0.0, False, False, True),
        ]
        for name in ("tanh", "relu")
    },
    **{f"rnn_{name}_cell.default": [(r(2, 3), r(2, 4), r(4, 3), r(4, 4), r(4), r(4))] for name in ("tanh", "relu")},
    "lstm_cell.default": [(r(2, 3), [r(2, 4), r(2, 4)], r(16, 3), r(16, 4), r(16), r(16))],
    "gru_cell.default": [(r(2, 3), r(2, 4), r(12, 3), r(12, 4), r(12), r(12)), (r(2, 3), r(2, 4), r(12, 3), r(12, 4))],
    # --- solving
    **{
        f"{name}.default": [
            (r(2, 3, 4), r(2, 5, 4), 2.0, None), (r(3, 4), r(5, 4), 1.0, None), (r(3, 4), r(5, 4), 3.0, None),
        ]
        for name in ("cdist", "_cdist_forward")
    },
    "_euclidean_dist.default": [(r(3, 4), r(5, 4))],
    "dist.default": [(r(3, 4), r(3, 4)), (r(3), r(3), 1)],
    "_trilinear.default": [
        (r(2, 3), r(5, 3, 4), r(2, 4), [1, 3], [0], [1, 2], [2, 3]), (r(3, 4), r(3, 4), r(3, 4), [], [], [], [0]),
    ],
    "linalg_inv_ex.default": [(SQUARE,)],
    "_linalg_solve_ex.default": [
        (SQUARE, r(2, 3, 4)), (SQUARE, r(2, 3)), (SQUARE[0], r(3)), (SQUARE, r(2, 4, 3), {"left": False}),
    ],
    "linalg_cholesky_ex.default": [(POSITIVE,), (POSITIVE, {"upper": True})],
    "linalg_solve_triangular.default": [
        (SQUARE, r(2, 3, 4), {"upper": True}), (SQUARE[0], r(2, 4, 3), {"upper": False, "left": False}),
        (SQUARE, r(3, 4), {"upper": False, "unitriangular": True}),
    ],
    "triangular_solve.default": [(r(2, 3, 4), SQUARE), (r(3, 4), SQUARE[0], False, True, True)],
    "_linalg_det.default": [(SQUARE,)],
    "_linalg_slogdet.default": [(SQUARE,)],
}  # fmt: skip
