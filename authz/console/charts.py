"""Pictures, drawn here and sent inside the page; each page has the same figures as a table."""

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import pygal
from pygal.style import Style

_LIGHT = ("#1d5fa8", "#c2410c", "#6b7280", "#0f766e")
_FONT = "system-ui, sans-serif"
_STYLE = Style(
    background="transparent", plot_background="transparent", foreground="#4b5563",
    foreground_strong="#374151", foreground_subtle="#9ca3af", colors=_LIGHT, font_family=_FONT,
    label_font_size=13, major_label_font_size=13, legend_font_size=14, opacity=".85",
)  # fmt: skip
# The picture stands by itself, so that it is told here how it looks where it is dark.
_DARK = (
    "inline:@media (prefers-color-scheme: dark) { text { fill: #d1d5db !important }"
    " .axis .line, .axis .guides { stroke: #6b7280 !important } }"
)


def bars(names: Sequence[str], series: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Stacked bars as a ``data:`` address of an SVG."""
    return _picture(pygal.StackedBar, names, series)


def lines(names: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """Lines, likewise."""
    return _picture(pygal.Line, names, series, dots_size=2)


def _picture(
    kind: Any, names: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]],
    **more: Any,
) -> str:  # fmt: skip
    css = ["file://style.css", "file://graph.css", _DARK]
    chart = kind(
        style=_STYLE, css=css, js=(), height=260, width=900, margin=8, legend_at_bottom=True,
        show_minor_x_labels=False, x_labels_major_count=8, truncate_label=-1,
        no_data_text="nothing",
        x_label_rotation=0, include_x_axis=True, disable_xml_declaration=True, **more,
    )  # fmt: skip
    chart.x_labels = list(names)
    for name, values in series:
        chart.add(name, list(values))
    return "data:image/svg+xml;base64," + b64encode(chart.render(is_unicode=True).encode()).decode()
