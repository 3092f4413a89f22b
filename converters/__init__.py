"""Converts networks that were trained in PyTorch. Needs PyTorch: `pip install jaxtransfer[torch]`."""
