import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer import JaxTransferError
from jaxtransfer.pge.restarts import Accumulation, Sums, add_restarts


def contribution(restart):
    """Numbers around 1000, so that sums in float32 lose digits."""
    return 1000 + jax.random.normal(jax.random.fold_in(jax.random.key(0), restart), (3,))


@functools.cache
def values(restarts):
    return np.asarray(jax.jit(jax.vmap(contribution))(jnp.arange(restarts)), np.float64)


class Sampled(Accumulation):
    def __init__(self, groups=5, per_block=1, vmap_size=1, mesh=None):
        self.traces = 0

        # Optimised as for a user: a compiler that simplified the sums would lose their low part.
        @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
        def program(sums, first, last):
            self.traces += 1
            return add_restarts(contribution, sums, first, last, per_block=per_block, vmap_size=vmap_size, mesh=mesh)

        self.program = program
        super().__init__(Sums.zeros(mesh, groups, (3,), jnp.float32), "sampled", per_block)

    def _advance(self, sums, first, last):
        return self.program(sums, first, last)


def expected(restarts, groups=5, per_block=1):
    of_group = np.arange(restarts) // per_block % groups
    return np.stack([values(100_000)[:restarts][of_group == group].mean(0) for group in range(groups)])


def devices(count):
    return jax.make_mesh((count,), ("restart",), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.mark.slow
@pytest.mark.parametrize("per_block", [1, 3])
@pytest.mark.parametrize(("vmap_size", "count"), [(1, None), (4, None), (1, 8), (4, 2)])
def test_group_means(per_block, vmap_size, count):
    mesh = None if count is None else devices(count)
    accumulation = Sampled(per_block=per_block, vmap_size=vmap_size, mesh=mesh)
    for restarts in (5 * per_block, 7 * per_block, 60 * per_block, 61 * per_block):
        accumulation.run(restarts)
        np.testing.assert_allclose(accumulation.means(), expected(restarts, per_block=per_block), rtol=1e-7)
    assert accumulation.traces == 1


def test_a_hundred_thousand_terms_lose_nothing():
    accumulation = Sampled(groups=3)
    accumulation.run(100_000)
    exact = expected(100_000, groups=3)
    np.testing.assert_allclose(accumulation.means(), exact, rtol=1e-10)
    alone = np.float32(0)
    for value in values(100_000)[::3, 0].astype(np.float32):
        alone += value
    assert abs(float(alone) / 33_334 - exact[0, 0]) > 1e-4


def test_parts_give_the_same_bits():
    whole, parts, restored = Sampled(), Sampled(), Sampled()
    whole.run(203)
    seen = []
    parts.run(100, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (100, 100)
    assert len(seen) > 10
    restored.restore(parts.state())
    restored.run(203)
    np.testing.assert_array_equal(restored.state()["high"], whole.state()["high"])
    np.testing.assert_array_equal(restored.state()["low"], whole.state()["low"])


def test_a_state_of_other_settings_is_refused():
    with pytest.raises(JaxTransferError, match="other settings"):
        Sampled(groups=4).restore(Sampled(groups=5).state())


def test_too_few_restarts():
    with pytest.raises(JaxTransferError, match="5 groups need 5 restarts or more, not 4"):
        Sampled().run(4)
    with pytest.raises(JaxTransferError, match="3 groups"):
        Sampled(groups=2).run(4)


def test_memory_does_not_grow_with_restarts():
    program = jax.jit(functools.partial(add_restarts, contribution))
    sums = Sums.zeros(None, 5, (3,), jnp.float32)
    # The number of restarts is an argument: one program, one plan of memory for any.
    first, last = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    needed = program.lower(sums, first, last).compile().memory_analysis()
    assert needed is not None
    assert needed.temp_size_in_bytes < 100_000
