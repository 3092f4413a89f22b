"""Figures: heat maps, curves, trees, ranked sources and attribution maps as PNG and SVG files."""

from jaxtransfer.figures.curves import retrieval_curves as retrieval_curves
from jaxtransfer.figures.dendrogram import tree as tree
from jaxtransfer.figures.maps import gallery as gallery
from jaxtransfer.figures.maps import scaled_map as scaled_map
from jaxtransfer.figures.matrix import heat_map as heat_map
from jaxtransfer.figures.sources import ranked_sources as ranked_sources
from jaxtransfer.figures.style import OTHER as OTHER
from jaxtransfer.figures.style import group_colours as group_colours
from jaxtransfer.figures.style import signed_colours as signed_colours
from jaxtransfer.figures.style import value_colours as value_colours
