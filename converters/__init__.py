"""Bringing in networks trained elsewhere. Needs PyTorch: `pip install jaxtransfer[torch]`."""
