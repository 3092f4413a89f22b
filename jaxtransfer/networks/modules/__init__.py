"""Takes the pure function and the weights from modules of JAX libraries."""

from jaxtransfer.networks.modules.function import ModuleFunction as ModuleFunction
from jaxtransfer.networks.modules.split import split_module as split_module
