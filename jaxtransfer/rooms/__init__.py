"""A synthetic indoor world with exact labels for 22 tasks."""

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
