"""Runs ONNX graphs in JAX: the operators of ONNX, and programs made of them."""

from jaxtransfer.onnx.program import OnnxProgram as OnnxProgram
from jaxtransfer.onnx.table import OPS as OPS
