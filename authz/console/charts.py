"""Pictures, drawn here and sent inside the page; each page has the same figures as a table."""

from base64 import b64encode
from collections.abc import Sequence
from math import sqrt
from typing import Any

import pygal
from pygal.style import Style

_LIGHT = ("#1d5fa8", "#c2410c", "#6b7280", "#0f766e")
_FONT = "system-ui, sans-serif"
_LOOKS = {
    "background": "transparent", "plot_background": "transparent", "foreground": "#4b5563",
    "foreground_strong": "#374151", "foreground_subtle": "#9ca3af", "font_family": _FONT,
    "guide_stroke_color": "#c4cad3", "major_guide_stroke_color": "#9ca3af",
    "label_font_size": 13, "major_label_font_size": 13, "legend_font_size": 14, "opacity": ".85",
}  # fmt: skip
_STYLE = Style(**_LOOKS, colors=_LIGHT)
# The picture stands by itself, so that it is told here how it looks where it is dark.
_DARK = (
    "inline:@media (prefers-color-scheme: dark) { text { fill: #d1d5db !important }"
    " .axis .line, .axis .guides { stroke: #6b7280 !important } }"
)


def bars(
    names: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], height: int = 260
) -> str:
    """Stacked bars as a ``data:`` address of an SVG."""
    return _picture(pygal.StackedBar, names, series, height=height, max_scale=height // 26)


def lines(names: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """Lines, likewise."""
    return _picture(pygal.Line, names, series, dots_size=2)


def dots(names: Sequence[str], series: Sequence[tuple[str, Sequence[int]]]) -> str:
    """A row for each of `series`, with a dot where there is something: the larger the more."""
    areas = [(name, [sqrt(one) if one else None for one in values]) for name, values in series]
    return _picture(
        pygal.Dot, names, areas, height=70 + 26 * len(series), show_legend=False,
        style=Style(**_LOOKS, colors=_LIGHT[:1] * len(series)),
    )  # fmt: skip


def _picture(
    kind: Any, names: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]],
    **more: Any,
) -> str:  # fmt: skip
    options = {
        "style": _STYLE, "css": ["file://style.css", "file://graph.css", _DARK], "js": (),
        "height": 260, "width": 900, "margin": 8, "legend_at_bottom": True,
        "show_minor_x_labels": False, "x_labels_major_count": 8, "truncate_label": -1,
        "no_data_text": "nothing", "x_label_rotation": 0, "include_x_axis": True,
        "disable_xml_declaration": True,
    }  # fmt: skip
    chart = kind(**(options | more))
    chart.x_labels = list(names)
    for name, values in series:
        chart.add(name, list(values))
    return "data:image/svg+xml;base64," + b64encode(chart.render(is_unicode=True).encode()).decode()
