"""Runs PyTorch programs in JAX: the core operations of PyTorch (ATen), and programs made of them."""

from jaxtransfer.aten.program import AtenProgram as AtenProgram
from jaxtransfer.aten.table import OPS as OPS
from jaxtransfer.aten.table import op as op
