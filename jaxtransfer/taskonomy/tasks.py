"""Lists the tasks of Taskonomy (Zamir et al., CVPR 2018), their names and the preprocessing of their networks."""

import dataclasses

from jaxtransfer.errors import unknown_name
from jaxtransfer.networks.preprocess import Preprocess


@dataclasses.dataclass(frozen=True)
class Task:
    """Describes a task of Taskonomy.

    Attributes:
        release: Name of the task in the PyTorch release.
        group: Group of the task in Song et al. (NeurIPS 2019): "2D", "3D", "geometric" or "semantic"; None if they do
            not use the task.
        preprocess: Maps probe images in [0, 1] to the network's input in [-1, 1].
        tanh: Whether a convolutional decoder of the task ends with tanh.
    """

    release: str
    group: str | None
    preprocess: Preprocess
    tanh: bool = True


_PLAIN = Preprocess((256, 256), mean=0.5, std=0.5)
_LOW_SATURATION = dataclasses.replace(_PLAIN, clip=(0.1, 0.9))

TASKS: dict[str, Task] = {
    "autoencoder": Task("autoencoding", "2D", _LOW_SATURATION),
    "curvature": Task("curvature", "3D", _LOW_SATURATION),
    "denoise": Task("denoising", "2D", _LOW_SATURATION),
    "edge2d": Task("edge_texture", "2D", _LOW_SATURATION),
    "edge3d": Task("edge_occlusion", "3D", _LOW_SATURATION),
    "keypoint2d": Task("keypoints2d", "2D", _LOW_SATURATION),
    "keypoint3d": Task("keypoints3d", "3D", _LOW_SATURATION),
    "colorization": Task("colorization", "2D", dataclasses.replace(_PLAIN, lightness=True)),
    "reshade": Task("reshading", "3D", _LOW_SATURATION),
    "rgb2depth": Task("depth_zbuffer", "3D", _LOW_SATURATION),
    "rgb2mist": Task("depth_euclidean", "3D", _LOW_SATURATION),
    "rgb2sfnorm": Task("normal", "3D", _LOW_SATURATION),
    "room_layout": Task("room_layout", "geometric", _LOW_SATURATION),
    "segment25d": Task("segment_unsup25d", "3D", _LOW_SATURATION),
    "segment2d": Task("segment_unsup2d", "2D", _LOW_SATURATION),
    "vanishing_point": Task("vanishing_point", "geometric", _PLAIN),
    "segmentsemantic": Task("segment_semantic", "semantic", _PLAIN, tanh=False),
    "class_1000": Task("class_object", "semantic", _PLAIN),
    "class_places": Task("class_scene", "semantic", _PLAIN),
    "inpainting_whole": Task("inpainting", "2D", dataclasses.replace(_PLAIN, mask_centre=True)),
    "ego_motion": Task("egomotion", None, _PLAIN),
    "fix_pose": Task("fixated_pose", None, _PLAIN),
    "jigsaw": Task("jigsaw", None, _PLAIN),
    "non_fixated_pose": Task("nonfixated_pose", None, _PLAIN),
    "point_match": Task("point_matching", None, _PLAIN),
}
"""All tasks by their names in Song et al. (NeurIPS 2019); the 20 tasks of that paper come first, in its order."""

_BY_RELEASE = {task.release: name for name, task in TASKS.items()}


def task_name(name: str) -> str:
    """Returns the key of a task in `TASKS`, given either of its names.

    Raises:
        JaxTransferError: Taskonomy has no such task.

    Examples:
        >>> task_name("reshading")
        'reshade'
    """
    name = _BY_RELEASE.get(name, name)
    if name not in TASKS:
        raise unknown_name("task", name, TASKS, where="in Taskonomy")
    return name
