"""Figures into files and pages: PNG, and SVG whose colours are the page's CSS variables and whose ids are its own."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from nested.report.drawing import quiet, style, variables
from nested.report.records import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
NOTHING: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # no metadata: equal figures are equal files


def save_png(figure: Figure, path: Path, dpi: int = 160) -> Path:
    """Write a PNG on white paper."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path.parent.mkdir(parents=True, exist_ok=True)
    with style(), quiet():
        figure.set_dpi(dpi)
        figure.set_facecolor("white")
        FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
        figure.set_facecolor("none")
    return path


def inline_svg(figure: Figure, key: str, description: str) -> str:
    """The figure as an SVG element for a page; `key` keeps its ids apart from those of other figures."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    with style(), quiet():
        FigureCanvasSVG(figure).print_svg(buffer, metadata=NOTHING)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    _separate(root, key)
    _slim(root)
    _recolour(root)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": visible(description)}
    return _serialise(root)


def _separate(root: ElementTree.Element, key: str) -> None:
    """Drop ids that nothing refers to, and put `key` before the others."""
    used = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            used.update(re.findall(r"url\(#([^)]+)\)", value))
            if name == XLINK + "href" and value.startswith("#"):
                used.add(value[1:])
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, f"{key}-{value}")
            elif name == XLINK + "href" and value.startswith("#"):
                element.set(name, f"#{key}-{value[1:]}")
            elif "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{key}-"))


def _slim(root: ElementTree.Element) -> None:
    """Fewer digits and blanks; fonts are the page's."""

    def rounded(found: re.Match[str]) -> str:
        return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")

    for element in root.iter():
        for name in ("d", "x", "y"):
            if name in element.attrib:
                digits = re.sub(r"-?\d+\.\d+", rounded, element.attrib[name])
                element.set(name, " ".join(digits.split()))
        if "style" in element.attrib:
            element.set("style", re.sub(r"font-family: [^;]*;? ?", "", element.attrib["style"]).strip())
        element.tail = None
        if element.tag not in (SVG + "text", SVG + "tspan"):
            element.text = None


def _recolour(root: ElementTree.Element) -> None:
    names = {light: f"var(--{name})" for name, (light, _) in variables().items()}
    for element in root.iter():
        for name in ("style", "fill", "stroke"):
            if name in element.attrib:
                value = element.attrib[name]
                element.set(name, re.sub(r"#[0-9a-f]{6}\b", lambda found: names.get(found[0], found[0]), value))


def _serialise(root: ElementTree.Element) -> str:
    """Without prefixes: an HTML parser knows SVG by its element's name."""
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        for name in [n for n in element.attrib if n.startswith(XLINK)]:
            element.attrib[name.removeprefix(XLINK)] = element.attrib.pop(name)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)
