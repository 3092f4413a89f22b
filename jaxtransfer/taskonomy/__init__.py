"""Taskonomy (Zamir et al., CVPR 2018): its tasks, and its networks as Flax modules."""

from jaxtransfer.taskonomy.networks import Bottleneck as Bottleneck
from jaxtransfer.taskonomy.networks import ConvolutionalDecoder as ConvolutionalDecoder
from jaxtransfer.taskonomy.networks import Encoder as Encoder
from jaxtransfer.taskonomy.networks import FullyConnectedDecoder as FullyConnectedDecoder
from jaxtransfer.taskonomy.networks import decode as decode
from jaxtransfer.taskonomy.networks import encode as encode
from jaxtransfer.taskonomy.networks import skeleton as skeleton
from jaxtransfer.taskonomy.tasks import TASKS as TASKS
from jaxtransfer.taskonomy.tasks import Task as Task
from jaxtransfer.taskonomy.tasks import task_name as task_name
