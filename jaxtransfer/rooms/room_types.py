"""The room types: their sizes, furniture, openings, floors and walls."""

from typing import NamedTuple

LARGE, SMALL = 6, 3
"""Number of pieces of furniture in a scene that consist of boxes, and number of round pieces."""


class RoomType(NamedTuple):
    """What all rooms of a type have in common.

    Attributes:
        smallest: Smallest width, depth and height in metres.
        largest: Largest width, depth and height in metres.
        furniture: Kinds of furniture and their probabilities, in the order in which they are placed: first `LARGE`
            kinds that consist of boxes, then `SMALL` round ones.
        openings: Openings on the left and the right of the first wall, and on the three other walls.
        floors: Patterns of the floor, equally likely.
        walls: Patterns of the walls, equally likely.
    """

    smallest: tuple[float, float, float]
    largest: tuple[float, float, float]
    furniture: tuple[tuple[str, float], ...]
    openings: tuple[str, str, str, str, str]
    floors: tuple[str, str, str]
    walls: tuple[str, str, str]


def _furniture(text: str) -> tuple[tuple[str, float], ...]:
    items = (item.rsplit(maxsplit=1) for item in text.split(","))
    return tuple((name.strip(), float(probability)) for name, probability in items)


ROOMS: dict[str, RoomType] = {
    "bedroom": RoomType(
        (2.8, 3.2, 2.4),
        (4.2, 4.8, 2.8),
        _furniture("bed 1, wardrobe .9, nightstand .8, desk .4, shelf .4, chair .5, lamp .6, plant .4, ball .35"),
        ("window", "window", "door", "picture", "picture"),
        ("planks", "carpet", "parquet"),
        ("plain", "stripes", "plain"),
    ),
    "living room": RoomType(
        (3.8, 4.2, 2.4),
        (5.6, 6.5, 3.0),
        _furniture("sofa 1, screen .9, coffee table .9, armchair .8, shelf .7, cabinet .5, lamp .7, plant .8, ball .4"),
        ("window", "window", "door", "picture", "picture"),
        ("parquet", "planks", "carpet"),
        ("plain", "brick", "stripes"),
    ),
    "kitchen": RoomType(
        (2.6, 3.0, 2.4),
        (4.0, 5.0, 2.8),
        _furniture("counter 1, stove 1, fridge 1, counter .8, round table .8, chair .8, plant .4, ball .3, plant .2"),
        ("window", "none", "door", "none", "picture"),
        ("checks", "stone tiles", "planks"),
        ("small tiles", "plain", "small tiles"),
    ),
    "office": RoomType(
        (3.0, 3.4, 2.5),
        (5.0, 6.0, 3.0),
        _furniture("table 1, office chair 1, desk .9, shelf .8, shelf .6, cabinet .6, plant .7, lamp .3, ball .2"),
        ("window", "window", "door", "picture", "none"),
        ("carpet", "carpet", "planks"),
        ("plain", "plain", "brick"),
    ),
    "bathroom": RoomType(
        (2.0, 2.4, 2.3),
        (3.2, 3.6, 2.7),
        _furniture("bathtub 1, sink 1, toilet 1, sink .3, nightstand .5, cabinet .3, plant .5, ball .4, lamp .2"),
        ("window", "none", "door", "picture", "none"),
        ("stone tiles", "small tiles", "checks"),
        ("tiles", "small tiles", "small tiles"),
    ),
    "corridor": RoomType(
        (1.5, 5.0, 2.4),
        (2.1, 8.5, 2.9),
        _furniture(
            "cabinet .6, shelf .35, chair .4, wardrobe .3, nightstand .3, cabinet .2, plant .7, plant .4, ball .3"
        ),
        ("door", "picture", "door", "door", "window"),
        ("planks", "stone tiles", "carpet"),
        ("plain", "stripes", "brick"),
    ),
}
"""The room types by name: the classes of `class_scene`, in order."""
