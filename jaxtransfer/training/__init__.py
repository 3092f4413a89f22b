"""Measures transfer: trains readouts or whole networks on labelled tasks, and judges them on held-out examples."""
