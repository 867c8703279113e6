"""Dashboards in Grafana's JSON, made by Grafana's own types; nothing here asks a database."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import (
    barchart,
    common,
    dashboard,
    heatmap,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as values
from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana import operation, overview, patient, person, security
from deploy.grafana.board import ALL, Board, Choice, Kind, Panel

BOARDS = (overview.BOARD, person.BOARD, patient.BOARD, security.BOARD, operation.BOARD)
DASHBOARDS = Path(__file__).parent / "dashboards"
SOURCE = models.DataSourceRef(type_val="grafana-clickhouse-datasource", uid="authz")

_PLUGIN = "4.0.0"  # the query's own form; a newer plugin reads it
_SERIES: tuple[Kind, ...] = ("series", "bars", "heat")
_UNITS = {"age": "s", "silent": "s", "share": "percentunit", "disk": "bytes"}
_PERSON = f"/d/authz-{person.BOARD.name}?var-subject="
_PATIENT = f"/d/authz-{patient.BOARD.name}?var-patient="
_LINKS = {"subject": _PERSON, "who": _PERSON, "patient": _PATIENT}
"""Where a column's values lead."""


class Query(Dataquery, Builder[Dataquery]):
    """A query as the data source has it (its ``CHSqlQuery``)."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel

    def build(self) -> Dataquery:
        return self

    def to_json(self) -> dict[str, object]:
        series = self._panel.kind in _SERIES
        return {
            "datasource": SOURCE, "editorType": "sql", "format": 0 if series else 1,
            "pluginVersion": _PLUGIN, "queryType": "timeseries" if series else "table",
            "rawSql": self._panel.sql, "refId": "A",
        }  # fmt: skip


def _graph(panel: Panel) -> Any:
    built = (
        timeseries.Panel()
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .placement(values.LegendPlacement.BOTTOM)
            .display_mode(values.LegendDisplayMode.LIST)
        )
        .tooltip(common.VizTooltipOptions().mode(values.TooltipDisplayMode.MULTI))
        .min(0)
        .line_width(1)
    )
    if panel.kind == "bars":
        stacking = common.StackingConfig().mode(values.StackingMode.NORMAL)
        built.draw_style(values.GraphDrawStyle.BARS).fill_opacity(80).stacking(stacking)
    return built.display_name(f"${{__field.labels.{panel.by}}}") if panel.by else built


def _ranked(_: Panel) -> Any:
    return (
        barchart.Panel()
        .orientation(values.VizOrientation.HORIZONTAL)
        .legend(common.VizLegendOptions().show_legend(False))
        .fill_opacity(80)
        .min(0)
    )


def _number(panel: Panel) -> Any:
    steps = [models.Threshold(value=0, color="green")]
    if panel.red_from is not None:
        steps.append(models.Threshold(value=panel.red_from, color="red"))
    limits = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
    return stat.Panel().thresholds(limits).graph_mode(values.BigValueGraphMode.NONE)


def _heat(_: Panel) -> Any:
    return heatmap.Panel().calculate(False).cell_gap(1)


def _table(panel: Panel) -> Any:
    built = table.Panel().filterable(True)
    shown = re.findall(r"\w+", panel.sql)
    for column, unit in _UNITS.items():
        if column in shown:
            _override(built, column, "unit", unit)
    for column, place in _LINKS.items():
        if column in shown:
            link = {"title": "more about them", "url": place + "${__value.raw:percentencode}"}
            _override(built, column, "links", [link])
    return built


def _override(built: Any, column: str, name: str, value: object) -> None:
    built.with_override(
        models.MatcherConfig(id_val="byName", options=column),
        [models.DynamicConfigValue(id_val=name, value=value)],
    )


_KINDS: dict[Kind, Callable[[Panel], Any]] = {
    "series": _graph, "bars": _graph, "heat": _heat, "ranked": _ranked, "number": _number,
    "table": _table,
}  # fmt: skip


def _panel(number: int, panel: Panel) -> Any:
    built = _KINDS[panel.kind](panel)
    built.id(number).title(panel.title).datasource(SOURCE).with_target(Query(panel))
    built.span(panel.width).height(4 if panel.kind == "number" else 9)
    if panel.kind not in ("table", "heat"):
        built.unit(panel.unit)
    for told, say in (
        (panel.says, built.description), (panel.since, built.time_from),
        (panel.least, built.interval),
    ):  # fmt: skip
        if told:
            say(told)
    return built


def _variable(choice: Choice) -> Any:
    if not choice.sql:
        return dashboard.TextBoxVariable(choice.name).label(choice.label).description(choice.says)
    return (
        dashboard.QueryVariable(choice.name)
        .label(choice.label)
        .description(choice.says)
        .datasource(SOURCE)
        .query(choice.sql)
        .refresh(models.VariableRefresh.ON_DASHBOARD_LOAD)
        .include_all(True)
        .all_value(ALL)
        .current(models.VariableOption(text="All", value="$__all", selected=True))
    )


def _dashboard(board: Board) -> models.Dashboard:
    others = (
        dashboard.DashboardLink("authz")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags(["authz"])
        .keep_time(True)
    )
    built = (
        dashboard.Dashboard(board.title)
        .uid(f"authz-{board.name}")
        .description(board.says)
        .tags(["authz"])
        .readonly()
        .time(board.since, "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(others)
        .variables([_variable(choice) for choice in board.choices])
    )
    for number, panel in enumerate(board.panels, 1):
        built.with_panel(_panel(number, panel))
    return built.build()


def written() -> dict[str, str]:
    """The files, by name."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    return {f"{board.name}.json": encoder.encode(_dashboard(board)) + "\n" for board in BOARDS}
