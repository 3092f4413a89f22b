"""Shared fixtures, and the strictness every test runs under."""

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # benchmarks; behind the installed package, which is tested
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # NumPy's and PyTorch's; the tests' processes have all cores at work
# Compiling takes most of the time: programs are hardly optimised, and what one process has compiled all others read.
# Processes that tests start inherit these. With a size the cache has a lock: no process reads half a file.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=1 {os.environ.get('XLA_FLAGS', '')}"
if version("jaxlib").startswith("0.10."):  # later ones have only the fusions that take long
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ['XLA_FLAGS']}"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="jaxtransfer-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**30)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest

# Modules and traces are objects that stay: a search for garbage after every 700 new ones took an eighth of the time.
gc.set_threshold(100_000, 20, 20)
# Sharding is tested on eight devices; everything else uses the first.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real probe photos and published figures; tests that need them skip where they are absent."""
    if not _DATA.is_dir():
        pytest.skip("the shared data folder is not here")
    return _DATA


@pytest.fixture
def optimised() -> Iterator[None]:
    """Programs that run faster and take longer to compile, for tests in which running is most of the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def float64() -> Iterator[None]:
    """Doubles, for tests that ask for more than float32 has."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def library_promotion() -> Iterator[None]:
    """JAX's defaults, which the layers of other libraries are written for."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def whole_precision() -> Iterator[None]:
    """Matrix products without a cheaper format."""
    with jax.default_matmul_precision("highest"):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips GPU tests where there is no GPU; a GPU's programs are optimised."""
    if jax.default_backend() == "gpu":
        jax.config.update("jax_disable_most_optimizations", False)
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # keywords hold the names of folders too
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
