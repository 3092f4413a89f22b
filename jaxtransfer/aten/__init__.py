"""Runs PyTorch programs in JAX: the core operations of PyTorch (ATen), and programs made of them."""

from jaxtransfer.aten.program import AtenProgram as AtenProgram
from jaxtransfer.aten.program import Node as Node
from jaxtransfer.aten.program import Value as Value
from jaxtransfer.aten.program import Weight as Weight
from jaxtransfer.aten.table import OPS as OPS
