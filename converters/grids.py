"""Tells in which order the axes of a representation are."""

from collections.abc import Sequence


def is_channels_first(shape: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether a representation is a grid [images, channels, h, w], to be stored with its channels last.

    A grid has the proportions of the images. Where that fits both orders, or none, channels first is assumed.

    Args:
        shape: Shape of the representation.
        image: Height and width of the images, and more.
    """
    return len(shape) == 4 and (is_grid(shape[2:], image[:2]) or not is_grid(shape[1:3], image[:2]))


def is_grid(places: Sequence[int], size: Sequence[int]) -> bool:
    """Whether height and width of a grid have the proportions of images of a size, to within one place."""
    (height, width), (h, w) = size, places
    return abs(h * width - w * height) < max(height, width)
