"""Implements recurrent layers."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxtransfer.aten.table import OPS as ATEN
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.onnx.table import op

# Where PyTorch's gates, in PyTorch's order, are among ONNX's; and ONNX's activations of one direction.
_LAYERS = {
    "LSTM": ((0, 2, 3, 1), ("Sigmoid", "Tanh", "Tanh")),
    "GRU": ((1, 0, 2), ("Sigmoid", "Tanh")),
    "RNN": ((0,), ("Tanh",)),
}


def _recurrent(
    name: str,
    x: jax.Array,
    w: jax.Array,
    r: jax.Array,
    b: Any = None,
    lengths: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
    peepholes: Any = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    input_forget: int = 0,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[jax.Array, ...]:
    """Takes sequences [length, images, features] and weights [directions, gates * hidden, ...]."""
    order, usual = _LAYERS[name]
    directions, hidden = w.shape[0], r.shape[-1]
    relu = name == "RNN" and list(activations or ()) == ["Relu"] * directions
    if list(activations or usual * directions) != list(usual) * directions and not relu:
        raise JaxTransferError(f"the activations {activations} are not supported")
    if lengths is not None or peepholes is not None or clip or input_forget or layout:
        raise JaxTransferError(
            "lengths of sequences, peepholes, clipping, coupled gates and layout=1 are not supported"
        )
    if name == "GRU" and not linear_before_reset:
        raise JaxTransferError("linear_before_reset=0 is not supported")

    def gates(parameter: jax.Array) -> jax.Array:
        return jnp.concatenate([parameter[i * hidden : (i + 1) * hidden] for i in order])

    params = []
    for d in range(directions):
        biases = [] if b is None else jnp.split(b[d], 2)
        params += [gates(parameter) for parameter in (w[d], r[d], *biases)]
    nothing = jnp.zeros((directions, x.shape[1], hidden), x.dtype)
    start = [nothing if state is None else state for state in (initial_h, initial_c)]
    function = ATEN[f"aten.{'rnn_relu' if relu else 'rnn_tanh' if name == 'RNN' else name.lower()}.input"]
    backwards = direction == "reverse"
    y, *states = function(
        jnp.flip(x, 0) if backwards else x,
        start if name == "LSTM" else start[0],
        params,
        b is not None,
        1,
        0.0,
        False,
        directions == 2,
        False,
    )
    y = y.reshape(*y.shape[:2], directions, hidden).swapaxes(1, 2)
    return (jnp.flip(y, 0) if backwards else y), *states


for _name in _LAYERS:
    op(_name)(functools.partial(_recurrent, _name))
