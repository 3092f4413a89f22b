"""One of two processes, of two devices each, that share the restarts of a principal gradient."""

import sys

import jax
import numpy as np
from tiny_backbones import BACKBONES, blobs

import jaxtransfer as jt

PORT, NUMBER, FILE = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_disable_most_optimizations", True)
jax.distributed.initialize(f"127.0.0.1:{PORT}", num_processes=2, process_id=int(NUMBER))
assert jax.device_count() == 4

init, features, _ = BACKBONES["dense"]
batches = jt.Episodes.of(*blobs(), ways=3, shots=3, queries=4)
mesh = jax.make_mesh((4,), ("restarts",), axis_types=(jax.sharding.AxisType.Auto,))
found = jt.principal_gradient(init, jt.Prototypical(features, 3, 3), batches, jax.random.key(3), restarts=50, mesh=mesh)
np.save(FILE, found.groups)
