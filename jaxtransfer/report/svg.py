"""SVG files as elements of the page."""

import re
from pathlib import Path


def inline_svg(file: Path) -> str:
    """Returns an SVG file as an element of the page: without a background, in the colour of the page's text."""
    text = file.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: _adapted_tag(tag[0], f"{file.stem}-"), text)
    attributes = 'class="figure" fill="currentColor" stroke-linejoin="round" aria-hidden="true"'
    return text.replace("<svg ", f"<svg {attributes} ", 1)


def _adapted_tag(tag: str, prefix: str) -> str:
    """Returns a tag in the colours of the page; `prefix` keeps the ids of several figures apart."""
    tag = tag.replace("#000000", "currentColor").replace("fill: #ffffff", "fill: none")
    for before in (' id="', 'href="#', "url(#"):
        tag = tag.replace(before, before + prefix)
    return tag
