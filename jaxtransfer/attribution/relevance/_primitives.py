"""What epsilon-LRP needs to know about each JAX primitive: one table, by name.

A primitive that is in no table here has no rule, and using it on the images is an error. To support another
primitive, decide to which table it belongs and add its name.
"""

from jaxtransfer.networks.primitives import AFFINE as AFFINE
from jaxtransfer.networks.primitives import CUSTOM as CUSTOM
from jaxtransfer.networks.primitives import CUSTOM_BACKWARD as CUSTOM_BACKWARD
from jaxtransfer.networks.primitives import ELEMENTWISE as ELEMENTWISE
from jaxtransfer.networks.primitives import INLINED as INLINED
from jaxtransfer.networks.primitives import SCALING as SCALING

# Linear in everything that depends on the images (after the indices, masks and weights are given).
LINEAR = frozenset(
    """
    all_gather all_gather_invariant all_to_all broadcast broadcast_in_dim complex concatenate conj cumsum
    device_put dynamic_slice dynamic_update_slice expand_dims fft gather imag mesh_cast name
    optimization_barrier pad pcast ppermute psum psum2 psum_invariant pvary real reduce_scatter reduce_sum
    reduce_window_sum reshape reshard rev scatter scatter-add scatter-sub scatter_add scatter_sub
    sharding_constraint slice split squeeze stack tile transpose unstack
    """.split()
)

# Linear in each of several arrays that may all depend on the images.
BILINEAR = frozenset("conv_general_dilated dot_general mul ragged_dot ragged_dot_general".split())

# Products of any number of entries of one array, or of an array and its updates.
PRODUCTS = frozenset("cumprod reduce_prod scatter-mul scatter_mul".split())

# Solutions x of a x = b; b comes last among the inputs, and there are as many as outputs.
SOLUTIONS = frozenset("custom_linear_solve triangular_solve".split())

# Outputs are some of the inputs, chosen by their values: relevance follows the choice (max pooling, sorting).
ROUTING = frozenset(
    """
    argmax argmin cummax cummin max min reduce_max reduce_min reduce_window_max reduce_window_min scatter-max
    scatter-min scatter_max scatter_min select_n sort top_k
    """.split()
)

# The call of a program that `jax.export` has made, whose operations cannot be rewritten.
EXPORTED = "call_exported"
# Log-sum-exps; of two arrays it is a function with derivatives of its own, in which there are at least these.
LOG_SUMS = frozenset({"cumlogsumexp"})
IN_LOGADDEXP = frozenset({"exp", "log1p", "max"}), frozenset({"exp2", "log1p", "max"})

CHECKPOINTS = frozenset("checkpoint remat remat2".split())
STOPS_GRADIENT = frozenset({"stop_gradient"})

# Moves entries, or marks them as varying over devices, and changes none; `REDUCING` summarises many in one.
SPREADING = frozenset(
    "broadcast_in_dim convert_element_type copy expand_dims name pcast pvary reshape squeeze transpose".split()
)
# Selects entries, or concatenates them.
MOVING = frozenset("concatenate dynamic_slice gather rev slice split stack tile unstack".split())
SUMS = frozenset({"reduce_sum", "reduce_window_sum"})
EXPONENTIALS = frozenset({"exp", "exp2", "expm1"})
REDUCING = SUMS | {"reduce_max", "reduce_min"}
