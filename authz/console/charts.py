"""Pictures, drawn here and sent inside the page; each page has the same figures as a table."""

from base64 import b64encode
from collections.abc import Sequence
from math import sqrt
from typing import Any

import pygal
from pygal.style import Style

WIDTH = 1160
_FEW = 5  # so few are counted by ones
_COLORS = (("#1d5fa8", "#60a5fa"), ("#c2410c", "#fb923c"))
"""Of the first series and the second, where it is light and where it is dark."""
_FONT = "system-ui, sans-serif"
_LOOKS = {
    "background": "transparent", "plot_background": "transparent", "foreground": "#4b5563",
    "foreground_strong": "#374151", "foreground_subtle": "#9ca3af", "font_family": _FONT,
    "guide_stroke_color": "#c4cad3", "major_guide_stroke_color": "#9ca3af",
    "label_font_size": 13, "major_label_font_size": 13, "legend_font_size": 14, "opacity": ".85",
}  # fmt: skip
# The picture stands by itself, so that it is told here how it looks where it is dark.
_DARK = (
    "text { fill: #d1d5db !important } .axis .line { stroke: #6b7280 !important }"
    " .axis .guide.line { stroke: #374151 !important }"
)


def bars(
    names: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], height: int = 260
) -> str:
    """Stacked bars as a ``data:`` address of an SVG."""
    highest = max(
        (sum(values) for values in zip(*(told for _, told in series), strict=True)), default=0
    )
    scale = {"y_labels": range(int(highest) + 1)} if highest < _FEW else {"max_scale": height // 26}
    return _picture(pygal.StackedBar, names, series, height=height, **scale)


def lines(names: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """Lines, likewise."""
    return _picture(pygal.Line, names, series, dots_size=2)


def dots(names: Sequence[str], series: Sequence[tuple[str, Sequence[int]]]) -> str:
    """A row for each of `series`, with a dot where there is something: the larger the more."""
    areas = [(name, [sqrt(one) if one else None for one in values]) for name, values in series]
    return _picture(
        pygal.Dot, names, areas, _COLORS[:1] * len(series), height=70 + 26 * len(series),
        show_legend=False, margin_left=24,
    )  # fmt: skip


def _picture(
    kind: Any, names: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]],
    colors: Sequence[tuple[str, str]] = _COLORS, **more: Any,
) -> str:  # fmt: skip
    dark = " ".join(
        f".color-{number} {{ fill: {color} !important; stroke: {color} !important }}"
        for number, (_, color) in enumerate(colors)
    )
    options = {
        "style": Style(**_LOOKS, colors=[color for color, _ in colors]), "js": (),
        "css": ["file://style.css", "file://graph.css",
                f"inline:@media (prefers-color-scheme: dark) {{ {_DARK} {dark} }}"],
        "height": 260, "width": WIDTH, "margin": 8, "margin_right": 40, "legend_at_bottom": True,
        "show_minor_x_labels": False, "x_labels_major_count": 8, "truncate_label": -1,
        "no_data_text": "nothing", "x_label_rotation": 0, "include_x_axis": True,
        "disable_xml_declaration": True,
    }  # fmt: skip
    chart = kind(**(options | more))
    chart.x_labels = list(names)
    for name, values in series:
        chart.add(name, list(values))
    return "data:image/svg+xml;base64," + b64encode(chart.render(is_unicode=True).encode()).decode()
