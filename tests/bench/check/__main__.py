"""Runs the measures and prints the table."""

import argparse
import os
import platform
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.check import parts
from tests.bench.check.load import Latency, cpu_per_check, through_envoy
from tests.bench.check.parts import Served


@dataclass
class Figures:
    """What was measured of one server."""

    cpu_16: float
    cpu_16_each: float
    """16 in flight at each worker."""
    cpu_16_cached: float
    cpu_1: float
    alone: Latency
    alone_cached: Latency
    busy: Latency


def measure(serving: AbstractContextManager[Served], work: Path, checks: int) -> Figures:
    with serving as served, parts.envoy(work, served) as port:
        few = checks // 8
        return Figures(
            cpu_16=cpu_per_check(served, work, checks, 16, varied=True),
            cpu_16_each=cpu_per_check(served, work, checks, 16 * len(served.ports), varied=True),
            cpu_16_cached=cpu_per_check(served, work, checks, 16, varied=False),
            cpu_1=cpu_per_check(served, work, few, 1, varied=True),
            alone=through_envoy(port, work, few, 1, varied=True),
            alone_cached=through_envoy(port, work, few, 1, varied=False),
            busy=through_envoy(port, work, checks, 16, varied=True),
        )


def least(rounds: list[Figures]) -> Figures:
    """The least of each figure: noise only ever adds."""

    def latency(name: str) -> Latency:
        found = [getattr(one, name) for one in rounds]
        return Latency(
            *(min(getattr(one, part) for one in found) for part in ("mean", "p50", "p99"))
        )

    return Figures(
        *(
            min(getattr(one, name) for one in rounds)
            for name in ("cpu_16", "cpu_16_each", "cpu_16_cached", "cpu_1")
        ),
        *(latency(name) for name in ("alone", "alone_cached", "busy")),
    )


def floor(work: Path, checks: int) -> Latency:
    """Envoy that asks nobody, one request in flight."""
    with parts.envoy(work, None) as port:
        return through_envoy(port, work, checks // 8, 1, varied=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plugin", help="the program opa-envoy-plugin, built elsewhere")
    parser.add_argument("--checks", type=int, default=16_000)
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often, in turns; the least of each is shown"
    )
    parser.add_argument("--memory", action="store_true", help="a million Checks, and memory")
    options = parser.parse_args()
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as directory, console.status("measuring") as status:
        work = Path(directory)
        servers = {
            "authz": partial(parts.authz, work),
            "authz, 2 workers": partial(parts.authz, work, workers=2),
        }
        if options.plugin:
            for log in (True, False):
                words = "with" if log else "no"
                servers[f"plugin, {words} log"] = partial(
                    parts.plugin, options.plugin, work, log=log
                )
        rounds: dict[str, list[Figures]] = {name: [] for name in servers}
        floors = []
        for number in range(options.rounds):
            floors.append(floor(work, options.checks).mean)
            for name, serving in servers.items():
                status.update(f"round {number + 1} of {options.rounds}: {name}")
                rounds[name].append(measure(serving(), work, options.checks))
        figures = {name: least(found) for name, found in rounds.items()}
        memory = million(work, status.update) if options.memory else []
    show(console, figures, min(floors), options.rounds)
    for count, size in memory:
        console.print(f"memory of authz after {count:,} Checks: {size:.0f} MiB")


def million(work: Path, tell) -> list[tuple[int, float]]:
    """Memory of authz alone (its OPA left out) after so many Checks."""
    found = []
    with parts.authz(work) as served:
        alone = Served(served.name, served.ports, served.processes[1:])
        for tenth in range(10):
            tell(f"a million Checks: {tenth}00,000")
            cpu_per_check(alone, work, 98_000, 16, varied=True)  # and 2,000 to warm up
            found.append(((tenth + 1) * 100_000, alone.memory_mib()))
    return found


def show(console: Console, figures: dict[str, Figures], envoy_alone: float, rounds: int) -> None:
    names = list(figures)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    table = Table(title=f"Checks: the least of {rounds} rounds, µs ({machine})")
    table.add_column("measure")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("must", justify="right")
    table.add_column("aim", justify="right")

    def row(what: str, value, ours: str, peer: str, must: float | None, aim: float | None) -> None:
        cells = [f"{value(figures[name]):,.0f}" for name in names]
        ratio = ""
        if peer in figures:
            ratio = f"{value(figures[ours]) / value(figures[peer]):.2f}"
        bounds = ["" if bound is None else f"{bound:.2f}" for bound in (must, aim)]
        table.add_row(what, *cells, ratio, *bounds)

    log, bare = "plugin, with log", "plugin, no log"
    row("CPU per Check, 16 in flight", lambda f: f.cpu_16, "authz", log, 1.0, 0.85)
    row("  the same request (cache hits)", lambda f: f.cpu_16_cached, "authz", bare, 1.25, 1.0)
    row("  1 in flight", lambda f: f.cpu_1, "authz", log, None, None)
    added = "through Envoy, 1 in flight, mean added"
    row(added, lambda f: f.alone.mean - envoy_alone, "authz", log, 2.0, 1.6)
    row("  cache hits", lambda f: f.alone_cached.mean - envoy_alone, "authz", log, 1.4, 1.1)
    row("through Envoy, 16 in flight, p50", lambda f: f.busy.p50, "authz", log, 1.1, 0.9)
    row("  p99", lambda f: f.busy.p99, "authz", log, 1.1, 0.9)
    two = "authz, 2 workers"
    row("CPU per Check, 2 workers / 1", lambda f: f.cpu_16, two, "authz", 1.1, 1.0)
    row("  16 in flight at each", lambda f: f.cpu_16_each, two, "authz", 1.1, 1.0)
    console.print(table)
    console.print(f"Envoy alone, 1 in flight: {envoy_alone:.0f} µs")


if __name__ == "__main__":
    main()
