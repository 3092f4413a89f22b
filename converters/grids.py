"""Tells in which order the axes of a representation are."""


def is_channels_first(shape: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether a representation is a grid [images, channels, h, w], to be stored with its channels last.

    A grid has the proportions of the images. Where that fits both orders, or none, channels first is assumed.

    Args:
        shape: Shape of the representation.
        image: Height and width of the images, and more.
    """
    return len(shape) == 4 and (_is_grid(shape[2:], image) or not _is_grid(shape[1:3], image))


def _is_grid(places: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether two sizes have the proportions of the images, to within one place."""
    (height, width), (h, w) = image[:2], places
    return abs(h * width - w * height) < max(height, width)
