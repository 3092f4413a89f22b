"""Compares Flax networks of your own: `python examples/flax_network.py FOLDER_OF_PHOTOS`."""

import sys

import jax
from flax import nnx

import jaxtransfer as jt


class Mixer(nnx.Module):
    """A small network with a gated block; put your own in its place."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 32, (8, 8), strides=8, rngs=rngs)
        self.norm = nnx.LayerNorm(32, rngs=rngs)
        self.value = nnx.Linear(32, 64, rngs=rngs)
        self.gate = nnx.Linear(32, 64, rngs=rngs)
        self.out = nnx.Linear(64, 32, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images to their representation."""
        x = nnx.gelu(self.stem(images))
        y = self.norm(x)
        return x + self.out(self.value(y) * nnx.sigmoid(self.gate(y)))


def main() -> None:
    """Compares three networks with different weights on a folder of photos."""
    preprocess = jt.Preprocess((128, 128), mean=0.5, std=0.25)
    networks = [jt.Network.of(Mixer(nnx.Rngs(i)), name=f"seed-{i}", preprocess=preprocess) for i in range(3)]
    probe = jt.load_probe(sys.argv[1], limit=16)
    affinity = jt.affinity_matrix(networks, probe.images, image_names=probe.names, similarity="correlation")
    for method in affinity.methods:
        for name, value, stderr in affinity.rank("seed-0", method=method):
            print(f"{method:>16}  seed-0 ~ {name}: {value:.3f} ± {stderr:.3f}")


if __name__ == "__main__":
    main()
