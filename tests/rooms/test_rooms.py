"""Scenes, views and labels of Rooms, against closed forms and finite differences."""

import functools
import hashlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from scipy.spatial.transform import Rotation
from skimage.color import rgb2lab

from jaxtransfer import rooms
from jaxtransfer.networks.preprocess import Preprocess
from jaxtransfer.rooms import definitions, furniture, rays
from jaxtransfer.rooms.hits import Hit, trace
from jaxtransfer.rooms.view import pixel_rays
from support.helpers import quick_cases

SIZE, COUNT = 32, 500
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def scenes() -> rooms.Scene:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(COUNT))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(rooms.sample_scene))(keys))


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in rooms.examples(KEY, COUNT, SIZE).items()}


@jax.jit
def _look(scene: rooms.Scene, camera: rooms.Camera) -> Hit:
    direction = jnp.matmul(camera.rotation, pixel_rays(camera, 3 * SIZE), precision="highest")
    return trace(scene, camera.position, direction)


def _row(tree, number: int):
    return jax.tree.map(lambda leaf: leaf[number], tree)


def _directions(tangent: Array | float, size: int = SIZE) -> np.ndarray:
    """Returns directions through the centres of pixels, [size, size, 3], with z = 1."""
    steps = np.asarray(tangent) * ((2 * np.arange(size) + 1) / size - 1)
    x, y = np.meshgrid(steps, steps)
    return np.stack([x, y, np.ones_like(x)], -1)


# Scenes


@pytest.mark.slow
def test_the_same_key_gives_the_same_scene_bit_for_bit(scenes: rooms.Scene) -> None:
    jax.clear_caches()
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(COUNT))
    again = jax.jit(jax.vmap(rooms.sample_scene))(keys)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(scenes), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(np.unique(scenes.extent[:, 0])) > COUNT - 5


@pytest.mark.slow
def test_another_process_draws_the_same_scenes(scenes: rooms.Scene) -> None:
    code = f"""
        import hashlib, jax, jax.numpy as jnp, numpy as np
        from jaxtransfer import rooms

        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange({COUNT}))
        drawn = jax.jit(jax.vmap(rooms.sample_scene))(keys)
        print(hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(drawn))).hexdigest())
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    own = hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(scenes))).hexdigest()
    assert process.stdout.strip() == own


def _corners(scene: rooms.Scene) -> list[tuple[int, np.ndarray]]:
    """Returns the corners of each solid's bounding box, with the index of its piece."""
    corners, number = [], 0
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), -1).reshape(-1, 3)
    for kind, solids in enumerate(scene.shapes):
        for centre, half, (cosine, sine) in zip(*solids, strict=True):
            if half[0] > 0:
                reach = half if kind == 0 else half[[0, 0, 2 if kind == 1 else 0]]
                turned = (signs * reach) @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
                corners.append((int(scene.piece[number]), centre + turned))
            number += 1
    return corners


def test_furniture_stands_on_the_floor_and_inside_of_the_room(scenes: rooms.Scene) -> None:
    for number in range(0, COUNT, 10):
        scene = _row(scenes, number)
        lowest = np.full(len(scene.furniture.kind), np.inf)
        for piece, corners in _corners(scene):
            assert (np.abs(corners[:, :2]) < scene.extent[:2] / 2 + 0.01).all()
            assert (corners[:, 2] > -1e-4).all()
            assert (corners[:, 2] < scene.extent[2]).all()
            lowest[piece] = min(lowest[piece], corners[:, 2].min())
        assert (np.isfinite(lowest) == scene.furniture.active).all()
        assert (lowest[scene.furniture.active] < 0.1).all()


def test_furniture_does_not_overlap_and_cameras_are_outside(scenes: rooms.Scene) -> None:
    pieces = scenes.furniture
    heading = np.abs(pieces.heading)
    reach = (heading * pieces.size[..., :1] + heading[..., ::-1] * pieces.size[..., 1:2]) / 2
    gap = np.abs(pieces.centre[:, :, None] - pieces.centre[:, None]) - reach[:, :, None] - reach[:, None]
    both = pieces.active[:, :, None] & pieces.active[:, None] & ~np.eye(pieces.active.shape[1], dtype=bool)
    assert (gap.max(-1)[both] > 0).all()
    for camera in (scenes.camera, scenes.second_camera):
        away = np.abs(pieces.centre - camera.position[:, None, :2]) - reach
        assert (away.max(-1)[pieces.active] > 0.2).all()
        assert (np.abs(camera.position[:, :2]) < scenes.extent[:, :2] / 2 - 0.2).all()
        assert (camera.position[:, 2] >= 0.8).all()
        assert (camera.position[:, 2] <= 1.8).all()


@pytest.mark.slow
def test_rooms_of_a_type_are_known_by_their_furniture(scenes: rooms.Scene, batch: dict[str, np.ndarray]) -> None:
    pieces = scenes.furniture
    category = furniture.CATEGORY[pieces.kind]
    there = np.stack([((category == c) & pieces.active).sum(1) for c in range(len(rooms.CATEGORIES))], 1)
    room, half = batch["class_scene"], COUNT // 2
    np.testing.assert_array_equal(room, scenes.room)
    centres = np.stack([there[:half][room[:half] == r].mean(0) for r in range(len(rooms.ROOMS))])
    guess = ((there[half:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (guess == room[half:]).mean() > 0.85


# Rays


def _alone(kind: int, centre: list[float], half: list[float], angle: float) -> rays.Shapes:
    """Returns shapes with a single solid; the other arrays hold a solid that does not exist."""
    heading = jnp.array([[np.cos(angle), np.sin(angle)]], jnp.float32)
    absent = rays.Solids(jnp.zeros((1, 3)), jnp.full((1, 3), -1.0), heading)
    solid = rays.Solids(jnp.array([centre]), jnp.array([half]), heading)
    return rays.Shapes(*(solid if n == kind else absent for n in range(3)))


@jax.jit
def _touch(shapes: rays.Shapes, direction: Array) -> tuple[Array, Array, Array, rays.Contact]:
    distance, index = rays.nearest(shapes, jnp.zeros((3, 1)), direction)
    solids = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[index], *shapes)
    point = direction * distance[None]
    return distance, index, point, rays.contact(rays.Solids(*solids), index, point)


@pytest.mark.parametrize("kind", quick_cases([0, 1, 2], 0))
def test_distances_normals_and_curvatures_of_solids(kind: int) -> None:
    centre, half, angle = [0.4, 3.0, 0.2], [0.7, 0.5, 0.6], 0.7
    towards = np.array(centre) + np.random.default_rng(kind).normal(size=(4000, 3)) * 0.6
    direction = (towards / np.linalg.norm(towards, axis=1, keepdims=True)).T.astype(np.float32)
    hit = _touch(_alone(kind, centre, half, angle), jnp.asarray(direction))
    distance, index, point, touched = jax.tree.map(np.asarray, hit)
    hit = index == kind
    assert 0.2 < hit.mean() < 1
    assert np.isinf(distance[~hit]).all()
    assert (index[~hit] == -1).all()

    # In the solid's own frame: points lie on the surface, and the gradient of its equation is the normal.
    turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    own, normal = turn @ (point[:, hit] - np.array(centre)[:, None]), turn @ touched.normal[:, hit]
    larger, smaller = touched.curvature[:, hit]
    np.testing.assert_allclose(np.linalg.norm(normal, axis=0), 1, atol=1e-5)
    assert ((normal * (turn @ direction[:, hit])).sum(0) < 1e-4).all()
    box, across = np.abs(own) / np.array(half)[:, None], np.linalg.norm(own[:2], axis=0) / half[0]
    if kind == 0:
        np.testing.assert_allclose(box.max(0), 1, atol=1e-4)
        np.testing.assert_allclose(np.take_along_axis(normal, box.argmax(0)[None], 0)[0] ** 2, 1, atol=1e-5)
        assert ((normal * own).sum(0) > 0).all()
        assert (touched.curvature[:, hit] == 0).all()
    elif kind == 1:
        side = across > box[2]
        np.testing.assert_allclose(np.maximum(across, box[2]), 1, atol=1e-4)
        np.testing.assert_allclose(normal[:2, side], own[:2, side] / half[0], atol=1e-3)
        np.testing.assert_allclose(np.sign(own[2, ~side]), normal[2, ~side], atol=1e-5)
        np.testing.assert_allclose(larger, np.where(side, 1 / half[0], 0), rtol=1e-5)
        assert (smaller == 0).all()
    else:
        np.testing.assert_allclose(np.linalg.norm(own, axis=0), half[0], atol=1e-4)
        np.testing.assert_allclose(normal, own / half[0], atol=1e-3)
        np.testing.assert_allclose([larger, smaller], 1 / half[0], rtol=1e-5)


def test_a_camera_in_front_of_a_sphere() -> None:
    shapes = _alone(2, [3.0, 0.0, 1.0], [0.5, 0.5, 0.5], 0.0)
    start, ahead = jnp.array([[0.0], [0.0], [1.0]]), jnp.array([[1.0], [0.0], [0.0]])
    distance, _ = rays.nearest(shapes, start, ahead)
    assert distance[0] == pytest.approx(2.5, abs=1e-5)
    assert rays.blocked(shapes, start, ahead, jnp.array([2.6]))[0] == 1
    assert rays.blocked(shapes, start, ahead, jnp.array([2.4]))[0] == 0


# Labels


@pytest.mark.slow
def test_examples_are_finite_of_the_stated_shapes_and_ranges(batch: dict[str, np.ndarray]) -> None:
    ranges = {"normal": (-1, 1), "colorization": (-1.1, 1.1), "depth_zbuffer": (0, 3), "depth_euclidean": (0, 3)}
    ranges |= {"segment_unsup2d": (-1, 1), "segment_unsup25d": (-1, 1), "vanishing_point": (-1, 1)}
    ranges |= {"room_layout": (0, 9), "nonfixated_pose": (-0.9, 0.9)}
    assert len(rooms.TASKS) == 22
    for task in rooms.TASKS.values():
        label = batch[task.label]
        assert np.isfinite(label).all(), task.name
        if task.loss == "softmax":
            assert label.dtype == np.int32
            assert label.shape == ((COUNT, SIZE, SIZE) if task.pixels else (COUNT,))
            assert -1 <= label.min() <= label.max() < task.outputs
        else:
            low, high = ranges.get(task.label, (0, 1))
            assert label.dtype == np.float32
            assert label.shape == ((COUNT, SIZE, SIZE, task.outputs) if task.pixels else (COUNT, task.outputs))
            assert low - 1e-4 <= label.min() <= label.max() <= high + 1e-4, task.name
            assert label.std(0).mean() > 0.005, task.name
    assert set(batch) == {task.label for task in rooms.TASKS.values()} | {"second_image", "seed"}


@pytest.mark.slow
def test_every_class_occurs(batch: dict[str, np.ndarray]) -> None:
    assert set(np.unique(batch["segment_semantic"])) == set(range(len(rooms.CATEGORIES)))
    assert set(range(len(rooms.OBJECTS))) <= set(np.unique(batch["class_object"]))
    assert (batch["class_object"] < 0).mean() < 0.1
    assert len(np.unique(batch["class_scene"])) == len(rooms.ROOMS)
    assert len(np.unique(batch["jigsaw"])) == len(rooms.PERMUTATIONS)


@pytest.mark.slow
def test_depths_and_reshading_follow_from_the_geometry(batch: dict[str, np.ndarray], scenes: rooms.Scene) -> None:
    for number in range(20):
        ray = _directions(scenes.camera.tangent[number])
        length = np.linalg.norm(ray, axis=-1)
        z, d = (np.expm1(batch[name][number, ..., 0]) for name in ("depth_zbuffer", "depth_euclidean"))
        np.testing.assert_allclose(z * length, d, rtol=1e-4)
        facing = -(batch["normal"][number] * ray).sum(-1) / length
        np.testing.assert_allclose(batch["reshading"][number, ..., 0], facing, atol=1e-4)


@pytest.mark.slow
def test_edges_of_the_room_meet_at_its_vanishing_points(batch: dict[str, np.ndarray], scenes: rooms.Scene) -> None:
    for number in range(50):
        x, y, z = scenes.extent[number].astype(float)
        camera = _row(scenes.camera, number)
        corners = np.array([[a * x / 2, b * y / 2, c * z] for a in (-1, 1) for b in (-1, 1) for c in (0, 1)])
        seen = ((corners - camera.position) @ camera.rotation.astype(float)).reshape(2, 2, 2, 3)
        directions = batch["vanishing_point"][number].reshape(3, 3)
        for axis in range(3):
            first, second = np.take(seen, 0, axis).reshape(4, 3), np.take(seen, 1, axis).reshape(4, 3)
            lines = np.cross(first, second)
            meet = np.cross(lines[0], lines[3])
            meet /= np.linalg.norm(meet)
            assert np.abs(directions @ meet).max() == pytest.approx(1, abs=1e-4)
        right, down, ahead = directions
        assert right[0] > 0
        assert down[1] > 0
        assert ahead[2] > 0
        np.testing.assert_allclose(np.cross(right, down), ahead, atol=1e-5)
        assert ahead[2] >= np.abs(right[2]) - 1e-5


@pytest.mark.slow
def test_room_layout_adds_up_to_the_room(batch: dict[str, np.ndarray], scenes: rooms.Scene) -> None:
    right, left, floor, ceiling, ahead, behind = batch["room_layout"].T
    along_x = np.abs(scenes.camera.rotation[:, 0, 2]) > np.abs(scenes.camera.rotation[:, 1, 2])
    extent = scenes.extent
    np.testing.assert_allclose(floor + ceiling, extent[:, 2], rtol=1e-5)
    np.testing.assert_allclose(ahead + behind, np.where(along_x, extent[:, 0], extent[:, 1]), rtol=1e-5)
    np.testing.assert_allclose(right + left, np.where(along_x, extent[:, 1], extent[:, 0]), rtol=1e-5)
    # A metre ahead in the camera's direction brings the wall ahead nearer, and one to the right the right one.
    heading = batch["vanishing_point"].reshape(-1, 3, 3)
    for number in range(50):
        camera = _row(scenes.camera, number)
        for row, near in ((0, right), (2, ahead)):
            outward = camera.rotation @ heading[number, row]
            limit = (extent[number, :2] / 2 - camera.position[:2] * np.sign(outward[:2]))[np.abs(outward[:2]).argmax()]
            assert near[number] == pytest.approx(limit, rel=1e-4)


def _points(batch: dict[str, np.ndarray], scenes: rooms.Scene, number: int) -> np.ndarray:
    """Returns the points seen by the pixels in the camera's frame, from the z-buffer."""
    return np.expm1(batch["depth_zbuffer"][number]) * _directions(scenes.camera.tangent[number])


@pytest.mark.slow
def test_walls_floor_and_ceiling_are_where_the_room_ends(batch: dict[str, np.ndarray], scenes: rooms.Scene) -> None:
    for number in range(50):
        camera, extent = _row(scenes.camera, number), scenes.extent[number]
        point = _points(batch, scenes, number) @ camera.rotation.T + camera.position
        normal = batch["normal"][number] @ camera.rotation.T
        category = np.array(rooms.CATEGORIES)[batch["segment_semantic"][number]]
        floor, ceiling = category == "floor", category == "ceiling"
        upright = np.isin(category, ["wall", "window", "door", "picture"])
        assert np.abs(point[floor][:, 2]).max(initial=0) < 1e-3
        assert np.abs(point[ceiling][:, 2] - extent[2]).max(initial=0) < 1e-3
        np.testing.assert_allclose(normal[floor], np.tile([0, 0, 1], (floor.sum(), 1)), atol=1e-5)
        np.testing.assert_allclose(normal[ceiling], np.tile([0, 0, -1], (ceiling.sum(), 1)), atol=1e-5)
        off = np.abs(np.abs(point[upright][:, :2]) - extent[:2] / 2)
        assert off.min(-1).max(initial=0) < 1e-3
        np.testing.assert_allclose(np.abs(normal[upright][:, :2]).max(-1), 1, atol=1e-5)
        assert (np.abs(point[..., :2]) < extent[:2] / 2 + 1e-3).all()


@pytest.mark.slow
def test_pixels_of_another_size_see_the_same(batch: dict[str, np.ndarray], scenes: rooms.Scene) -> None:
    scene = _row(scenes, 3)
    hit = jax.tree.map(np.asarray, _look(scene, scene.camera))
    middle = np.expm1(batch["depth_euclidean"][3, ..., 0])
    fine = hit.distance.reshape(3 * SIZE, 3 * SIZE)[1::3, 1::3]
    category = hit.category.reshape(3 * SIZE, 3 * SIZE)[1::3, 1::3]
    # A ray along an edge may fall on either side of it.
    assert (np.abs(fine - middle) < 1e-3).mean() > 0.99
    assert (category == batch["segment_semantic"][3]).mean() > 0.99


@pytest.mark.slow
def test_class_object_covers_most(batch: dict[str, np.ndarray], scenes: rooms.Scene) -> None:
    checked = 0
    for number in range(COUNT):
        pieces, surfaces = _row(scenes.furniture, number), len(furniture.SURFACES)
        there = furniture.CATEGORY[pieces.kind[pieces.active]]
        counts = np.bincount(batch["segment_semantic"][number].ravel(), minlength=len(rooms.CATEGORIES))[surfaces:]
        if len(np.unique(there)) == len(there) and np.sort(counts)[-2] < counts.max():
            expected = counts.argmax() if counts.max() > 0.01 * SIZE**2 else -1
            assert batch["class_object"][number] == expected
            checked += 1
    assert checked > COUNT / 5


@pytest.mark.slow
def test_normals_are_those_of_the_depth(batch: dict[str, np.ndarray], scenes: rooms.Scene) -> None:
    agree, middle = [], (slice(1, -1), slice(1, -1))
    for number in range(50):
        point = _points(batch, scenes, number)
        normal, category = batch["normal"][number], batch["segment_semantic"][number]
        alike = (batch["curvature"][number].max(-1) == 0)[middle]
        for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            alike &= (np.abs(np.roll(normal, shift, (0, 1)) - normal).max(-1) < 1e-3)[middle]
            alike &= (np.roll(category, shift, (0, 1)) == category)[middle]
        cross = np.cross(point[2:, 1:-1] - point[:-2, 1:-1], point[1:-1, 2:] - point[1:-1, :-2])
        cross /= np.linalg.norm(cross, axis=-1, keepdims=True)
        agree.append((np.abs(cross - normal[middle]).max(-1) < 0.02)[alike])
    agreement = np.concatenate(agree)
    assert len(agreement) > 10_000
    assert agreement.mean() > 0.97  # the rest are parallel boards, one behind the other


@pytest.mark.slow
def test_curvature_is_how_normals_turn(batch: dict[str, np.ndarray], scenes: rooms.Scene) -> None:
    ratios = []
    for number in range(COUNT):
        k = batch["curvature"][number]
        k = 4 * k / (1 - k)
        ball = (k[..., 1] > 0)[:, 1:] & (k[..., 1] > 0)[:, :-1] & (np.abs(np.diff(k[..., 0], axis=1)) < 1e-4)
        turned = np.linalg.norm(np.diff(batch["normal"][number], axis=1), axis=-1)[ball]
        moved = np.linalg.norm(np.diff(_points(batch, scenes, number), axis=1), axis=-1)[ball]
        ratios.append(turned / moved / k[:, 1:, 0][ball])
    quotients = np.concatenate(ratios)
    assert len(quotients) > 1000
    assert (np.abs(quotients - 1) < 0.03).mean() > 0.9  # the rest are pairs of pixels on two balls


@pytest.mark.slow
def test_pose_takes_points_from_one_view_to_the_other(batch: dict[str, np.ndarray], scenes: rooms.Scene) -> None:
    errors, seen, fine = [], 0, 3 * SIZE
    for number in range(40):
        camera, second = _row(scenes.camera, number), _row(scenes.second_camera, number)
        pose = batch["nonfixated_pose"][number]
        turn = Rotation.from_rotvec(pose[:3]).as_matrix()
        np.testing.assert_allclose(turn, camera.rotation.T @ second.rotation, atol=1e-4)
        x, y, z = ((_points(batch, scenes, number).reshape(-1, 3) - pose[3:]) @ turn).T
        column, row = (np.round((v / z / second.tangent + 1) * fine / 2 - 0.5) for v in (x, y))
        inside = (z > 0.1) & (column >= 0) & (column < fine) & (row >= 0) & (row < fine)
        there = np.where(inside, row * fine + column, 0).astype(int)
        length = np.linalg.norm(_directions(second.tangent, fine).reshape(-1, 3), axis=1)
        depth = np.asarray(_look(_row(scenes, number), second).distance) / length
        errors.append(np.abs(np.log(depth[there] / np.where(inside, z, 1)))[inside])
        seen += inside.mean() > 0.25
    assert seen > 30
    assert np.median(np.concatenate(errors)) < 0.01


# Labels of images


def _image(seed: int = 0) -> Array:
    return jax.random.uniform(jax.random.key(seed), (SIZE, SIZE, 3))


def test_lab_is_that_of_skimage_and_of_preprocess() -> None:
    image = _image()
    lab = jax.jit(definitions.lab)(image)
    np.testing.assert_allclose(lab, rgb2lab(np.asarray(image, float)) / 100, atol=2e-3)
    lightness = Preprocess((SIZE, SIZE), lightness=True)(image[None])[0]
    np.testing.assert_allclose(lab[..., :1], lightness, atol=1e-5)


def test_edges_and_corners_of_an_image() -> None:
    corner = jnp.zeros((SIZE, SIZE, 3)).at[12:, 12:].set(1)
    edges, corners = jax.jit(definitions.edge_texture)(corner)[..., 0], jax.jit(definitions.keypoints2d)(corner)[..., 0]
    assert jnp.abs(edges[:8, :8]).max() < 1e-5
    assert edges[24, 12] > 0.9
    assert edges[24, 24] < 1e-5
    row, column = np.unravel_index(np.argmax(corners), corners.shape)
    assert max(abs(row - 12), abs(column - 12)) <= 2
    assert corners[24, 12] < 1e-2 < corners[row, column]


def test_segments_part_where_colours_do() -> None:
    image = jnp.zeros((SIZE, SIZE, 3)).at[:, SIZE // 2 :].set(jnp.array([1.0, 0.2, 0.1]))
    same = np.asarray(jax.jit(definitions.segment_unsup2d)(image))
    assert same.shape == (SIZE, SIZE, 6)
    assert set(np.unique(same)) == {-1, 0, 1}
    near_right = same[..., 0]  # SIZE / 16 = 2 pixels
    assert (near_right[:, SIZE // 2 - 1] == 0).all()
    assert near_right[:, :8].mean() > 0.4
    assert (near_right[:, -2:] == -1).all()
    assert (same[-SIZE // 4 :, :, 5] == -1).all()
    assert (same[: -SIZE // 4, :, 5] >= 0).all()


def test_a_steep_plane_has_no_occlusion_edge_and_a_step_has() -> None:
    x = jnp.linspace(-0.7, 0.7, SIZE)[None] * jnp.ones((SIZE, 1))
    plane = 1 / (0.8 + x)
    step = jnp.where(x < 0, 2.0, 3.0)
    ahead = jnp.zeros((SIZE, SIZE, 3)).at[..., 2].set(1)
    rest = (jnp.zeros((SIZE, SIZE, 2)), *[jnp.zeros((SIZE, SIZE), jnp.int32)] * 2)
    edges = [definitions.edge_occlusion(rooms.View(ahead, ahead, depth, -ahead, *rest)) for depth in (plane, step)]
    assert edges[0].max() == 0
    assert (edges[1][:, SIZE // 2 - 1 : SIZE // 2 + 1] == 1).all()
    assert edges[1][:, : SIZE // 2 - 1].max() == 0


def test_arrangements_of_a_jigsaw_are_far_apart_and_undone() -> None:
    permutations = np.asarray(rooms.PERMUTATIONS)
    assert (np.sort(permutations, 1) == np.arange(9)).all()
    agreeing = (permutations[:, None] == permutations[None]).sum(-1)
    assert agreeing[~np.eye(len(permutations), dtype=bool)].max() == 1
    example = {"image": jnp.asarray(_image()[:30, :30]), "jigsaw": jnp.asarray(7)}
    shown = rooms.TASKS["jigsaw"].input(example)
    back = np.argsort(permutations[7])
    inverse = next(n for n, p in enumerate(permutations) if (p == back).all())
    again = rooms.TASKS["jigsaw"].input({"image": shown, "jigsaw": jnp.asarray(inverse)})
    assert not np.array_equal(shown, example["image"])
    np.testing.assert_array_equal(again, example["image"])


@pytest.mark.parametrize("size", quick_cases([32, 64, 96], 32))
def test_inputs_of_every_size(size: int) -> None:
    example = jax.eval_shape(functools.partial(rooms.example, size=size), KEY)
    for task in rooms.TASKS.values():
        shape = jax.eval_shape(task.input, example).shape
        assert shape == ((2, size, size, 3) if task.views == 2 else (size, size, 3))


@pytest.mark.slow
def test_inputs_differ_from_the_image_as_they_say(batch: dict[str, np.ndarray]) -> None:
    example = {name: jnp.asarray(values[0]) for name, values in batch.items()}
    image = example["image"]
    noisy = rooms.TASKS["denoising"].input(example)
    inner = (image > 0.4) & (image < 0.6)
    assert 0.1 < (noisy - image)[inner].std() < 0.2
    np.testing.assert_array_equal(noisy, rooms.TASKS["denoising"].input(example))
    masked = np.asarray(rooms.TASKS["inpainting"].input(example))
    assert (masked[8:24, 8:24] == 0.5).all()
    np.testing.assert_array_equal(masked[:8], image[:8])
    grey = rooms.TASKS["colorization"].input(example)
    assert jnp.ptp(grey, axis=-1).max() == 0
    lightness = Preprocess((SIZE, SIZE), lightness=True)
    np.testing.assert_allclose(lightness(grey[None]), lightness(image[None]), atol=1e-5)
