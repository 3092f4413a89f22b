"""Defines the labels of the 22 tasks.

Each label is a pure function of the image, `View` or `Scene` of a single example. Labels of pixels have shape
[size, size, channels]; classes are int32. A negative class, or a negative value of a yes-no label, means that there is
no label: leave it out of the loss.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtransfer.pixels import linear_to_srgb, srgb_to_linear
from jaxtransfer.rooms import segments
from jaxtransfer.rooms.furniture import CATEGORY, SURFACES
from jaxtransfer.rooms.scene import OUTWARD, Camera, Scene
from jaxtransfer.rooms.view import View

_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])


def lab(image: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
    """Converts an sRGB image to CIELAB (white point D65), divided by 100: L* in [0, 1], a* and b* in [-1.1, 1.1]."""
    linear = srgb_to_linear(image)
    to_xyz = jnp.asarray(_XYZ / _XYZ.sum(1, keepdims=True), jnp.float32)
    xyz = jnp.matmul(linear, to_xyz.T, precision="highest")
    root = jnp.where(xyz > 216 / 24389, jnp.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = jnp.moveaxis(root, -1, 0)
    return jnp.stack([1.16 * y - 0.16, 5 * (x - y), 2 * (y - z)], -1)


def grey(image: Float[Array, "h w 3"]) -> Float[Array, "h w"]:
    """Computes the sRGB value of the grey with the same lightness L* as each pixel; in [0, 1]."""
    lightness = lab(image)[..., 0]
    root = (lightness + 0.16) / 1.16
    linear = jnp.where(root > 6 / 29, root**3, (116 * root - 16) * 27 / 24389)
    return linear_to_srgb(linear)


def colorization(image: Float[Array, "size size 3"]) -> Float[Array, "size size 2"]:
    """Returns CIELAB a* and b*, divided by 100; in [-1.1, 1.1]."""
    return lab(image)[..., 1:]


def _smooth(values: Float[Array, "h w *c"]) -> Float[Array, "h w *c"]:
    """Smooths along both axes with binomial weights 1 4 6 4 1 (about a Gaussian of 1 pixel); borders are replicated."""
    for axis in (0, 1):
        length = values.shape[axis]
        padded = jnp.pad(values, [(2, 2) if a == axis else (0, 0) for a in range(values.ndim)], mode="edge")
        a, b, c, d, e = (jax.lax.slice_in_dim(padded, start, start + length, axis=axis) for start in range(5))
        values = (a + e + 4 * (b + d) + 6 * c) / 16
    return values


def _gradients(values: Float[Array, "h w *c"]) -> tuple[Float[Array, "h w *c"], Float[Array, "h w *c"]]:
    """Returns central differences per pixel, down the rows and to the right."""
    down, right = jnp.gradient(values, axis=(0, 1))
    return down, right


def _corners(values: Float[Array, "h w c"]) -> Float[Array, "h w"]:
    """Returns the root of the smaller eigenvalue of the smoothed structure tensor (Shi and Tomasi, CVPR 1994)."""
    down, right = _gradients(values)
    a, b, c = (_smooth(product.sum(-1)) for product in (down * down, down * right, right * right))
    smaller = (a + c) / 2 - jnp.sqrt(((a - c) / 2) ** 2 + b * b)
    return jnp.sqrt(jnp.maximum(smaller, 0))


def edge_texture(image: Float[Array, "size size 3"]) -> Float[Array, "size size 1"]:
    """Returns 1 - exp(-g / 0.05) in [0, 1), where g is the gradient norm of smoothed lightness L*/100 per pixel."""
    down, right = _gradients(_smooth(lab(image)[..., :1]))
    return 1 - jnp.exp(-jnp.sqrt(down**2 + right**2) / 0.05)


def keypoints2d(image: Float[Array, "size size 3"]) -> Float[Array, "size size 1"]:
    """Returns 1 - exp(-r / 0.03) in [0, 1), where r is the corner response of lightness L*/100.

    r is the root of the smaller eigenvalue of the smoothed structure tensor (Shi and Tomasi, CVPR 1994), per pixel.
    """
    return 1 - jnp.exp(-_corners(_smooth(lab(image)[..., :1]))[..., None] / 0.03)


def segment_unsup2d(image: Float[Array, "size size 3"]) -> Float[Array, "size size 6"]:
    """Says whether pixels at six offsets lie in the same segment: 1 yes, 0 no, -1 where the offset leaves the image.

    Segments are clusters of colour and position. Offsets are 1/16, 1/8 and 1/4 of the image height, to the right
    and down, in the order of `segments.OFFSETS`.
    """
    return segments.same_segment(segments.segment(_smooth(lab(image)), 0.4))


def segment_unsup25d(view: View) -> Float[Array, "size size 6"]:
    """As `segment_unsup2d`, but segments are clusters of colour, log distance, normal and position."""
    parts = [_smooth(lab(view.image)), 0.5 * jnp.log(view.distance)[..., None], 0.3 * view.normal]
    return segments.same_segment(segments.segment(jnp.concatenate(parts, -1), 0.4))


def depth_zbuffer(view: View) -> Float[Array, "size size 1"]:
    """Returns log(1 + z) in (0, 3), where z is the distance along the optical axis in metres."""
    return jnp.log1p(view.distance * view.direction[..., 2])[..., None]


def depth_euclidean(view: View) -> Float[Array, "size size 1"]:
    """Returns log(1 + d) in (0, 3), where d is the distance from the camera in metres."""
    return jnp.log1p(view.distance)[..., None]


def normal(view: View) -> Float[Array, "size size 3"]:
    """Returns unit normals that point out of the surface, in the camera's frame: x right, y down, z forward."""
    return view.normal


def reshading(view: View) -> Float[Array, "size size 1"]:
    """Returns the cosine between the normal and the direction to the camera: shading by a light there; in [0, 1]."""
    return jnp.maximum(-(view.normal * view.direction).sum(-1, keepdims=True), 0)


def curvature(view: View) -> Float[Array, "size size 2"]:
    """Returns k / (4/m + k) in [0, 1) for both principal curvatures k in 1/m, the larger first.

    All surfaces are flat or convex, so k >= 0.
    """
    return view.curvature / (4 + view.curvature)


def edge_occlusion(view: View) -> Float[Array, "size size 1"]:
    """Returns the size of depth jumps: 0 for a jump up to 1.05 times the distance, 1 from 1.25 times, smooth between.

    The jump is the larger of the second differences of 1/z along rows and columns, relative to 1/z, because 1/z is
    linear in the image of a plane at any angle.
    """
    inverse = 1 / (view.distance * view.direction[..., 2])
    padded = jnp.pad(inverse, 1, mode="reflect", reflect_type="odd")
    down = padded[:-2, 1:-1] + padded[2:, 1:-1] - 2 * inverse
    right = padded[1:-1, :-2] + padded[1:-1, 2:] - 2 * inverse
    jump = jnp.maximum(jnp.abs(down), jnp.abs(right)) / inverse
    share = jnp.clip((jump - 0.05) / 0.2, 0, 1)
    return (share * share * (3 - 2 * share))[..., None]


def keypoints3d(view: View) -> Float[Array, "size size 1"]:
    """Returns 1 - exp(-r / 0.1) in [0, 1), where r is the corner response of smoothed normals.

    It is high where the normals turn in two directions.

    r is the root of the smaller eigenvalue of the smoothed structure tensor of the three components, per pixel.
    """
    return 1 - jnp.exp(-_corners(_smooth(_smooth(view.normal)))[..., None] / 0.1)


def _compass(camera: Camera) -> Float[Array, "3 3"]:
    """Returns the room's axes that are the camera's right, down and forward, as columns in the room's frame.

    Forward is the horizontal axis within 45 degrees of the camera's heading.
    """
    outward = jnp.asarray(OUTWARD)
    heading = jnp.matmul(outward[:4], camera.rotation[:, 2], precision="highest")
    facing = jnp.argmax(heading)
    return jnp.stack([outward[(facing + 3) % 4], outward[4], outward[facing]], 1)


def room_layout(scene: Scene) -> Float[Array, " 6"]:
    """Returns distances in metres from the camera to the right wall, left wall, floor, ceiling, front wall, back wall.

    Walls are named as the camera sees them: the front wall lies within 45 degrees of its heading.
    """
    extent, (x, y, z) = scene.extent, scene.camera.position
    half = extent[:2] / 2
    distances = jnp.stack([half[0] - x, half[1] - y, half[0] + x, half[1] + y, z, extent[2] - z])
    heading = jnp.matmul(jnp.asarray(OUTWARD)[:4], scene.camera.rotation[:, 2], precision="highest")
    facing = jnp.argmax(heading)
    sides = (facing + jnp.array([3, 1, 0, 2])) % 4
    right, left, ahead, behind = distances[sides]
    return jnp.stack([right, left, distances[4], distances[5], ahead, behind])


def vanishing_point(scene: Scene) -> Float[Array, " 9"]:
    """Returns the room's axes right, down and forward as unit vectors in the camera's frame, concatenated.

    Lines along an axis (x, y, z) meet in the image at its vanishing point (x, y) / z. Forward is the horizontal axis
    within 45 degrees of the camera's heading, so the label jumps at 45 degrees. No rule avoids such a jump: the axes of
    a room are the same after a quarter turn.
    """
    return jnp.matmul(scene.camera.rotation.T, _compass(scene.camera), precision="highest").T.ravel()


def nonfixated_pose(scene: Scene) -> Float[Array, " 6"]:
    """Returns the second camera's pose in the first camera's frame: rotation vector in radians, position in metres.

    A point p in the second camera's frame is R p + t in the first camera's frame; R rotates about the rotation vector
    by its length. Rotations are below 0.6 rad, positions below 0.9 m.
    """
    first, second = scene.camera, scene.second_camera
    rotation = jnp.matmul(first.rotation.T, second.rotation, precision="highest")
    moved = jnp.matmul(first.rotation.T, second.position - first.position, precision="highest")
    twist = jnp.stack(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    sine = jnp.linalg.norm(twist) / 2
    angle = jnp.arctan2(sine, (jnp.trace(rotation) - 1) / 2)
    return jnp.concatenate([twist / 2 * angle / jnp.maximum(sine, 1e-6), moved])


def segment_semantic(view: View) -> Int[Array, "size size"]:
    """Returns the index of each pixel's category in `CATEGORIES`."""
    return view.category


def class_object(view: View, scene: Scene) -> Int[Array, ""]:
    """Returns the index in `OBJECTS` of the piece of furniture that covers most pixels; -1 if it covers at most 1 %."""
    pieces = scene.furniture
    indices = jnp.arange(len(pieces.kind), dtype=jnp.int32)
    share = (view.piece[..., None] == indices[None, None]).mean((0, 1))
    largest = jnp.argmax(share)
    number = jnp.asarray(CATEGORY)[pieces.kind[largest]] - len(SURFACES)
    return jnp.where(share[largest] > 0.01, number, -1)


def class_scene(scene: Scene) -> Int[Array, ""]:
    """Returns the index of the room type in `ROOMS`."""
    return scene.room
