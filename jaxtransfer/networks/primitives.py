"""Names the JAX primitives that compute each entry by itself, and those that call a function."""

# What they do to several arrays is decided in `attribution/relevance/_activations.py`.
AFFINE = frozenset("add add_any convert_element_type copy copy_p neg reduce_precision stop_gradient sub".split())
SCALING = frozenset({"div", "mul"})
NONLINEAR = frozenset(
    """
    abs acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp cos cosh digamma erf
    erf_inv erfc exp exp2 expm1 floor integer_pow lgamma log log1p logistic max min nextafter pow rem round
    rsqrt select_n sign sin sinh sqrt square tan tanh
    """.split()
)
LOGICAL = frozenset("and eq ge gt is_finite le lt ne not or xor".split())
ELEMENTWISE = AFFINE | SCALING | NONLINEAR | LOGICAL

# Calls that may be replaced by their body, and calls with derivatives of their own.
INLINED = frozenset("call closed_call core_call jit named_call pjit".split())
CUSTOM_BACKWARD = frozenset("custom_vjp_call custom_vjp_call_jaxpr".split())
CUSTOM = CUSTOM_BACKWARD | {"custom_jvp_call"}
