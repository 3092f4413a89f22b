"""Measures transfer: trains readouts on frozen features, or whole networks from their weights."""
