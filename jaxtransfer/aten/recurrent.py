"""Implements recurrent layers as loops, so that a program does not grow with the length of the sequences."""

# PyTorch documents an operation under the ATen overload that it is named for.
# ruff: noqa: D103

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtransfer.aten.algebra import linear
from jaxtransfer.aten.table import op
from jaxtransfer.errors import JaxTransferError

State = tuple[jax.Array, ...]
"""What a step hands to the next one: the output [images, features] first, and in an LSTM the cell."""


def _lstm_step(inputs: jax.Array, state: State, w_hh: jax.Array, b_hh: Any, w_hr: Any = None) -> State:
    i, f, g, o = jnp.split(inputs + linear(state[0], w_hh, b_hh), 4, axis=-1)
    cell = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    output = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return (output if w_hr is None else linear(output, w_hr)), cell


def _gru_step(inputs: jax.Array, state: State, w_hh: jax.Array, b_hh: Any) -> State:
    x_r, x_z, x_n = jnp.split(inputs, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(linear(state[0], w_hh, b_hh), 3, axis=-1)
    z = jax.nn.sigmoid(x_z + h_z)
    new = jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n)
    return ((1 - z) * new + z * state[0],)


def _rnn_step(activation: Callable[[jax.Array], jax.Array]) -> Callable[..., State]:
    return lambda inputs, state, w_hh, b_hh: (activation(inputs + linear(state[0], w_hh, b_hh)),)


_tanh_step, _relu_step = _rnn_step(jnp.tanh), _rnn_step(jax.nn.relu)


def _run(
    step: Callable[..., State],
    x: jax.Array,
    start: State,
    params: Sequence[jax.Array],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[jax.Array, ...]:
    """Runs all layers; the states [layers * directions, images, features] come out after the sequence of outputs."""
    if train and dropout:
        raise JaxTransferError("a recurrent layer in training mode drops values at random")
    y = x.swapaxes(0, 1) if batch_first else x
    directions = 2 if bidirectional else 1
    size = len(params) // (num_layers * directions)
    finals = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            w_ih, w_hh, *rest = params[number * size : (number + 1) * size]
            b_ih, b_hh, *rest = rest if has_biases else (None, None, *rest)
            inputs = linear(y, w_ih, b_ih)  # of all steps at once

            def turn(state: State, inputs: jax.Array, weights: Any = (w_hh, b_hh, *rest)) -> tuple[State, jax.Array]:
                state = step(inputs, state, *weights)
                return state, state[0]

            final, sequence = lax.scan(turn, tuple(s[number] for s in start), inputs, reverse=direction == 1)
            outputs.append(sequence)
            finals.append(final)
        y = jnp.concatenate(outputs, -1)
    states = tuple(jnp.stack(parts) for parts in zip(*finals, strict=True))
    return (y.swapaxes(0, 1) if batch_first else y), *states


@op("lstm.input")
def lstm(input: jax.Array, hx: Sequence[jax.Array], params: Sequence[jax.Array], *options: Any) -> Any:
    return _run(_lstm_step, input, tuple(hx), params, *options)


def _register_layer(name: str, step: Callable[..., State]) -> None:
    @op(f"{name}.input")
    def layer(input: jax.Array, hx: jax.Array, params: Sequence[jax.Array], *options: Any) -> Any:
        return _run(step, input, (hx,), params, *options)

    @op(f"{name}_cell.default")
    def cell(
        input: jax.Array, hx: jax.Array, w_ih: jax.Array, w_hh: jax.Array, b_ih: Any = None, b_hh: Any = None
    ) -> jax.Array:
        return step(linear(input, w_ih, b_ih), (hx,), w_hh, b_hh)[0]


for _name, _step in {"gru": _gru_step, "rnn_tanh": _tanh_step, "rnn_relu": _relu_step}.items():
    _register_layer(_name, _step)


@op("lstm_cell.default")
def lstm_cell(
    input: jax.Array, hx: Sequence[jax.Array], w_ih: jax.Array, w_hh: jax.Array, b_ih: Any = None, b_hh: Any = None
) -> Any:
    return _lstm_step(linear(input, w_ih, b_ih), tuple(hx), w_hh, b_hh)
