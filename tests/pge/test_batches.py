import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer import Episodes, JaxTransferError, Minibatches
from jaxtransfer.pge.batches import draw, shuffled


def numbered(counts):
    """Images that are their own number, and labels with these counts."""
    labels = np.repeat([f"class {i}" for i in range(len(counts))], counts)
    order = np.random.default_rng(0).permutation(len(labels))
    images = np.broadcast_to(np.arange(len(labels), dtype=np.float32)[:, None, None, None], (len(labels), 2, 2, 1))
    return images, labels[order]


def test_episodes():
    images, labels = numbered([9, 20, 14, 3, 11])
    episodes = Episodes.of(images, labels, ways=3, shots=2, queries=6)
    drawn, classes = jax.jit(jax.vmap(episodes))(jax.random.split(jax.random.key(0), 3000))
    numbers = np.asarray(drawn[..., 0, 0, 0]).astype(int).reshape(3000, 3, 8)
    np.testing.assert_array_equal(classes[0], np.repeat(np.arange(3), 8))

    of_classes = labels[numbers]
    assert (of_classes == of_classes[..., :1]).all(), "a way is one class"
    assert all(len(set(episode)) == 3 for episode in of_classes[..., 0]), "ways are different classes"
    assert all(len(set(way)) == 8 for episode in numbers[:200] for way in episode), "images are different"
    assert "class 3" not in of_classes, "too small"
    for name, count in [("class 0", 9), ("class 1", 20), ("class 2", 14), ("class 4", 11)]:
        # Each of 4 classes is in 3 of 4 episodes, each of its images in 8/count of those.
        shares = np.array([(numbers == i).sum() for i in np.flatnonzero(labels == name)]) / 3000
        np.testing.assert_allclose(shares, 0.75 * 8 / count, atol=5 * (0.25 / 3000) ** 0.5)
    first = np.array([(numbers[:, 0, 0] == i).mean() for i in np.flatnonzero(labels == "class 1")])
    np.testing.assert_allclose(first, 0.25 / 20, atol=5 * (0.0125 / 3000) ** 0.5)


def test_minibatches_and_scaling():
    images = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1) * 20
    batches = Minibatches.of(images, np.array(list("abcabcabcabc")), size=5)
    drawn, labels = batches(jax.random.key(0))
    numbers = np.rint((np.asarray(drawn).ravel() + 1) * 127.5 / 20).astype(int)
    assert len(set(numbers)) == 5
    np.testing.assert_array_equal(labels, numbers % 3)
    assert Minibatches.of(images, np.arange(12.0), size=50).size == 12
    assert Minibatches.of(images, np.arange(12.0)[:, None]).labels.dtype == jnp.float32


def test_shuffling_moves_images_and_keeps_both_sets():
    images, labels = jnp.arange(10.0).reshape(10, 1, 1, 1), jnp.arange(10)
    moved, same = shuffled((images, labels), jax.random.key(1))
    np.testing.assert_array_equal(labels, same)
    assert not np.array_equal(moved, images)
    np.testing.assert_array_equal(np.sort(np.ravel(moved)), np.ravel(images))


def test_stacked_batches_come_in_order():
    stacked = (jnp.arange(6.0).reshape(3, 2, 1, 1, 1), jnp.arange(6).reshape(3, 2))
    drawn = [draw(stacked, jax.random.key(0), jnp.int32(i))[1].tolist() for i in range(4)]
    assert drawn == [[0, 1], [2, 3], [4, 5], [0, 1]]


def test_what_cannot_be_drawn():
    images, labels = numbered([9, 20, 3])
    with pytest.raises(JaxTransferError, match=r"needs 3 classes of 8 images or more .* 2 of the 3 classes"):
        Episodes.of(images, labels, ways=3, shots=2, queries=6)
    with pytest.raises(JaxTransferError, match="two or more ways"):
        Episodes.of(images, labels, ways=1)
    with pytest.raises(JaxTransferError, match="32 images and 31 labels"):
        Minibatches.of(images, labels[:-1])
    with pytest.raises(JaxTransferError, match="0 images"):
        Episodes.of(images[:0], labels[:0])
    with pytest.raises(JaxTransferError, match="one image or more"):
        Minibatches.of(images, labels, size=0)
