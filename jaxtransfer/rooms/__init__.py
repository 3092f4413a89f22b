"""Rooms: a synthetic data set of furnished rooms with labels for 22 tasks, trained encoders and measured transfer.

Here "Rooms" always means the data set, "room" the space that one scene shows, and "room type" its class (bedroom,
kitchen, ...), the key of `ROOMS`. Scenes are drawn from random keys and rendered in JAX, so the labels are exact.

Examples:
    >>> from jaxtransfer import rooms
    >>> len(rooms.TASKS), len(rooms.zoo().names)
    (22, 30)
    >>> list(rooms.ROOMS)
    ['bedroom', 'living room', 'kitchen', 'office', 'bathroom', 'corridor']
    >>> rooms.TASKS["normal"].group, rooms.TASKS["normal"].outputs
    ('3D', 3)
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxtransfer.rooms.furniture import CATEGORIES as CATEGORIES
from jaxtransfer.rooms.furniture import OBJECTS as OBJECTS
from jaxtransfer.rooms.room_types import ROOMS as ROOMS
from jaxtransfer.rooms.sampling import sample_scene as sample_scene
from jaxtransfer.rooms.scene import Camera as Camera
from jaxtransfer.rooms.scene import Scene as Scene
from jaxtransfer.rooms.tasks import PERMUTATIONS as PERMUTATIONS
from jaxtransfer.rooms.tasks import TASKS as TASKS
from jaxtransfer.rooms.tasks import Example as Example
from jaxtransfer.rooms.tasks import Task as Task
from jaxtransfer.rooms.tasks import example as example
from jaxtransfer.rooms.tasks import examples as examples
from jaxtransfer.rooms.tasks import labels as labels
from jaxtransfer.rooms.view import View as View
from jaxtransfer.rooms.view import render as render

if TYPE_CHECKING:
    from jaxtransfer.rooms.benchmark import PROTOCOLS as PROTOCOLS
    from jaxtransfer.rooms.benchmark import Transfers as Transfers
    from jaxtransfer.rooms.benchmark import probe as probe
    from jaxtransfer.rooms.benchmark import transfers as transfers
    from jaxtransfer.rooms.benchmark import zoo as zoo


def __getattr__(name: str) -> Any:
    # Imported on first use: rendering needs neither Flax nor Orbax.
    if name not in ("PROTOCOLS", "Transfers", "probe", "transfers", "zoo"):
        raise AttributeError(f"module 'jaxtransfer.rooms' has no attribute {name!r}")
    return getattr(importlib.import_module("jaxtransfer.rooms.benchmark"), name)
