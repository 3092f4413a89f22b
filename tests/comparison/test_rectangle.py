"""Results of targets and sources that have their own names, against the square matrices that they are parts of."""

import itertools
import json

import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.comparison.affinity import MethodResult
from jaxtransfer.comparison.measure import pair_columns, pair_count, pair_indices

NETWORKS = tuple("abcdefg")
TARGETS, SOURCES = ("f", "b", "a"), ("c", "a", "e", "f")
SCORE = jt.Measure("score", directed=True, sampled="labelled examples")


def square(*, directed: bool = True, samples: int = 9) -> jt.Affinity:
    rng = np.random.default_rng(0)
    rows, columns = pair_indices(7, directed=directed)
    drawn = rng.normal(size=(samples, len(rows))).astype(np.float32)
    values, stderr = np.ones((7, 7), np.float32), np.zeros((7, 7), np.float32)
    values[rows, columns], stderr[rows, columns] = drawn.mean(0), drawn.std(0, ddof=1) / 3
    if not directed:
        values, stderr = np.triu(values) + np.triu(values, 1).T, stderr + stderr.T
    counts = np.arange(49).reshape(7, 7) if directed else np.full((7, 7), samples)
    measure = jt.Measure("score", directed=directed)
    result = MethodResult(values, stderr, counts, (("a", "1.png"), ("g", "2.png")), drawn, stderr / 2, measure)
    return jt.Affinity(NETWORKS, "cosine", {"m": result}, {"b": ["constant"], "g": ["constant"]})


def rectangle(targets: int = 3, sources: int = 5, samples: int = 9) -> jt.Affinity:
    """Scores of tasks t0, t1, ... by networks n0, n1, ..., of which the last has the name of the first task."""
    rng = np.random.default_rng(1)
    drawn = rng.normal(size=(samples, targets * sources)).astype(np.float32)
    shape = targets, sources
    stderr = (drawn.std(0, ddof=1) / np.float32(samples) ** np.float32(0.5)).reshape(shape)
    result = MethodResult(drawn.mean(0).reshape(shape), stderr, np.full(shape, 90), (), drawn, measure=SCORE)
    names = [*(f"n{j}" for j in range(sources - 1)), "t0"]
    return jt.Affinity(names, "cosine", {"ridge": result}, targets=[f"t{i}" for i in range(targets)])


def test_packed_pairs_of_a_rectangle() -> None:
    cells = list(itertools.product(range(3), range(5)))
    rows, columns = pair_indices(5, targets=3)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == cells
    assert pair_count(5, targets=3) == 15
    np.testing.assert_array_equal(pair_columns(5, rows, columns, targets=3), np.arange(15))


@pytest.mark.parametrize("directed", [True, False])
def test_a_part_of_a_square_matrix_has_its_values(directed: bool) -> None:
    whole = square(directed=directed)
    part = whole.only(targets=TARGETS, sources=SOURCES)
    assert (part.targets, part.sources, part.square) == (TARGETS, SOURCES, False)
    assert part.unusable == {"m": (("a", "1.png"),)}
    assert part.faults == {"b": ("constant",)}
    assert part.measure("m").directed
    samples, of_whole = part.pseudo_values("m"), whole.pseudo_values("m")
    sketched, of_sketches = part.sketch_stderr("m"), whole.sketch_stderr("m")
    assert samples is not None
    assert of_whole is not None
    assert sketched is not None
    assert of_sketches is not None
    assert samples.shape == (9, 12)
    for i, j in itertools.product(range(3), range(4)):
        row, column = NETWORKS.index(TARGETS[i]), NETWORKS.index(SOURCES[j])
        assert part.pair_columns("m", np.array(i), np.array(j)) == 4 * i + j
        if row == column:
            assert np.isnan(part["m"][i, j])
            assert np.isnan(samples[:, 4 * i + j]).all()
            continue
        assert part["m"][i, j] == whole["m"][row, column]
        assert part.stderr("m")[i, j] == whole.stderr("m")[row, column]
        assert part.counts("m")[i, j] == whole.counts("m")[row, column]
        assert sketched[i, j] == of_sketches[row, column]
        place = whole.pair_columns("m", np.array(row), np.array(column))
        np.testing.assert_array_equal(samples[:, 4 * i + j], of_whole[:, place])
    for target in TARGETS:
        assert part.rank(target) == [source for source in whole.rank(target) if source[0] in SOURCES]


def test_a_part_of_a_rectangle() -> None:
    whole = rectangle()
    part = whole.only(targets=["t2", "t0"], sources=["t0", "n1"])
    np.testing.assert_array_equal(part["ridge"], whole["ridge"][np.ix_([2, 0], [4, 1])])
    samples, of_whole = part.pseudo_values("ridge"), whole.pseudo_values("ridge")
    assert samples is not None
    assert of_whole is not None
    np.testing.assert_array_equal(samples, of_whole[:, [14, 11, 4, 1]])
    np.testing.assert_array_equal(whole.only(sources=["n2"])["ridge"], whole["ridge"][:, 2:3])
    assert whole.only(targets=["t1"]).sources == whole.sources


def test_a_source_with_the_name_of_the_target_is_ranked() -> None:
    affinity = rectangle()
    row = affinity["ridge"][0]
    expected = [affinity.sources[j] for j in np.argsort(-row)]
    assert [name for name, _, _ in affinity.rank("t0")] == expected
    assert "t0" in expected
    holes = affinity["ridge"].copy()
    holes[0, [1, 4]] = np.nan
    some = jt.Affinity.of(affinity.sources, {"ridge": holes}, targets=affinity.targets)
    assert {name for name, _, _ in some.rank("t0")} == {"n0", "n2", "n3"}


def test_save_and_load(tmp_path) -> None:
    saved = rectangle()
    saved.save(tmp_path)
    loaded = jt.Affinity.load(tmp_path)
    assert (loaded.targets, loaded.sources, loaded.square) == (saved.targets, saved.sources, False)
    assert loaded.measure("ridge") == SCORE
    for read in (jt.Affinity.stderr, jt.Affinity.counts, jt.Affinity.pseudo_values, jt.Affinity.__getitem__):
        np.testing.assert_array_equal(read(loaded, "ridge"), read(saved, "ridge"))
    lines = (tmp_path / "affinity_ridge.csv").read_text().splitlines()
    assert lines[0] == ",n0,n1,n2,n3,t0"
    assert [line.split(",")[0] for line in lines[1:]] == ["t0", "t1", "t2"]


def test_a_rectangle_whose_targets_have_the_names_of_its_sources_stays_one(tmp_path) -> None:
    values = np.arange(9).reshape(3, 3)
    jt.Affinity.of("abc", {"m": values}, targets="abc").save(tmp_path)
    loaded = jt.Affinity.load(tmp_path)
    assert not loaded.square
    assert [name for name, _, _ in loaded.rank("c")] == ["c", "b", "a"]
    jt.Affinity.of("abc", {"m": values + values.T}).save(tmp_path)
    assert jt.Affinity.load(tmp_path).square
    assert "targets" not in json.loads((tmp_path / "affinity.json").read_text())


def test_damaged_rectangles(tmp_path) -> None:
    rectangle().save(tmp_path)
    np.save(tmp_path / "pseudo_values_ridge.npy", np.zeros((3, 14), np.float32))
    with pytest.raises(jt.JaxTransferError, match=r"pseudo_values_ridge\.npy is of other networks"):
        jt.Affinity.load(tmp_path)
    rectangle().save(tmp_path)
    (tmp_path / "stderr_ridge.csv").write_text(",n0\nt0,1\n")
    with pytest.raises(jt.JaxTransferError, match=r"rows of stderr_ridge\.csv differ"):
        jt.Affinity.load(tmp_path)


def test_without_missing_values() -> None:
    """The source that most targets lack goes, then the target that lacks most."""
    values = np.arange(20, dtype=float).reshape(4, 5)
    values[:3, 1] = values[2, [0, 3]] = np.nan
    holes = jt.Affinity.of("vwxyz", {"m": values}, targets="abcd")
    whole = holes.complete("m")
    assert (whole.targets, whole.sources) == (tuple("abd"), tuple("vxyz"))
    assert whole.complete("m").targets == whole.targets


def test_errors() -> None:
    affinity = rectangle()
    with pytest.raises(jt.JaxTransferError, match="3 targets and 5 sources with names of their own"):
        _ = affinity.names
    with pytest.raises(jt.JaxTransferError, match=r"select them with `targets=`, `sources=`"):
        affinity.only(["n0"])
    with pytest.raises(jt.JaxTransferError, match="no target 'n0'; there are: t0, t1, t2"):
        affinity.rank("n0")
    with pytest.raises(jt.JaxTransferError, match="no source 't1'; there are: "):
        affinity.only(sources=["t1"])
    with pytest.raises(jt.JaxTransferError, match=r"2 targets and 3 sources need a matrix of 2 x 3, not \(3, 3\)"):
        jt.Affinity.of("abc", {"m": np.eye(3)}, targets="xy")
    with pytest.raises(jt.JaxTransferError, match="Several targets have one name"):
        jt.Affinity.of("abc", {"m": np.eye(2, 3)}, targets="xx")
