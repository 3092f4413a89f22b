"""`examples/efficientnets.py`."""

import numpy as np
import pytest
from PIL import Image

from jaxtransfer import Zoo
from support.helpers import affinity_of

efficientnets = pytest.importorskip("efficientnets", reason="needs jaxtransfer[examples]", exc_type=ImportError)

_NAMES = ("a", "a-control", "b", "b-control")


def test_contrast_counts_photos():
    rng = np.random.default_rng(0)
    cosines = rng.uniform(0, 0.1, (3, 4, 4)).astype(np.float32)
    per_photo = np.array([0.5, 0.6, 0.7])
    cosines[:, 0, 2] = cosines[:, 2, 0] = per_photo
    for trained, control in [(0, 1), (0, 3), (2, 1), (2, 3)]:
        cosines[:, trained, control] = cosines[:, control, trained] = 0.2
    affinity = affinity_of(cosines.mean(0), _NAMES, cosines[:, *np.triu_indices(4, 1)])
    near, far, difference = efficientnets._contrast(affinity, "method")
    error = per_photo.std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(near, (0.6, error), rtol=1e-5)
    np.testing.assert_allclose(far, (0.2, 0), atol=1e-6)
    np.testing.assert_allclose(difference, (0.4, error), rtol=1e-5)


@pytest.mark.parametrize(
    ("difference", "words"),
    [((0.1, 0.01), "are nearer to"), ((-0.1, 0.01), "are farther from"), ((0.1, 0.1), "are neither clearly nearer")],
)
def test_sentences_follow_the_numbers(difference, words):
    (sentence,) = efficientnets.sentences(
        [efficientnets.Contrast("saliency", "cosine", (0.5, 0.01), (0.5 - difference[0], 0.01), difference)]
    )
    assert words in sentence
    assert f"t = {difference[0] / difference[1]:.1f}" in sentence


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # PyTorch's own, while it exports
def test_two_networks(tmp_path, monkeypatch, capsys):
    sizes = dict(zip(efficientnets._SIZES, (64, 80), strict=False))  # two, and small
    monkeypatch.setattr(efficientnets, "_SIZES", sizes)
    monkeypatch.setattr(efficientnets, "_PHOTOS", efficientnets._PHOTOS[:3])
    efficientnets.main(["--out", str(tmp_path)])
    assert capsys.readouterr().out.count(" with cosine, trained networks ") == 3
    zoo = Zoo(tmp_path / "zoo")
    assert len(zoo) == 4
    for name in sizes:
        trained, control = zoo[name], zoo[name + "-control"]
        assert trained.apply == control.apply  # compiled once
        assert set(trained.params) == set(control.params)
    for similarity in ("cosine", "correlation"):
        for method in ("saliency", "input_x_gradient", "epsilon_lrp"):
            table = np.loadtxt(tmp_path / similarity / f"affinity_{method}.csv", str, delimiter=",")
            assert np.isfinite(table[1:, 1:].astype(float)).all()
            assert table.shape == (5, 5)
            with Image.open(tmp_path / similarity / f"affinity_{method}.png") as figure:
                figure.verify()
    assert (tmp_path / "trained_and_control.png").is_file()
