"""Breaks the whole house at random, under load; at the end counts must be even and the log intact.

    python -m tests.faults.soak [--minutes M] [--seed S] [--keep]

Rounds of one to three disasters: kill -9, SIGTERM and SIGSTOP of every part; the clocks of
ext-authz and receiver set ahead and back; disks filled; certificates run out. After each round all
is mended, and requests must go through both Envoys into ClickHouse again. Exit 1 if anything that
was answered is not in the log as it was answered, if anything is there twice, if a gap is told that
no disaster explains, or if `authz verify` finds anything.

It runs in namespaces of its own (unshare), so that its disks and processes are gone when it ends.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import structlog
from rich.console import Console
from rich.live import Live
from rich.table import Table

from authz.store.client import QUERY_ERRORS

from .disasters import START, Disaster, Struck, drawn, strike
from .house import CHECKERS, SIDECARS, House, house
from .load import Load
from .reckoning import Reckoning, reckon

_WELL_SECONDS = 120  # after which a house that was mended and is not well again never will be
_CALM_SECONDS = 2.0  # at most, between rounds
_MARK = "SOAK_UNSHARED"
_UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


@dataclass(slots=True)
class Soak:
    here: House
    load: Load
    random: Random
    seconds: float
    lasting: float
    only: str
    console: Console
    struck: list[Struck] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    rounds: int = 0
    slowest: float = 0
    """The most seconds it took until all was well again."""
    begun: float = 0
    now: str = "starting"

    async def run(self) -> Reckoning:
        started = time.monotonic()
        self.here.start()
        keeping = asyncio.create_task(self.here.keep())
        await self._well("the start")
        self.begun = time.monotonic()
        self.struck.append(Struck(START, started, self.begun))
        loading = asyncio.create_task(self.load.run())
        try:
            while time.monotonic() < self.begun + self.seconds and not self.wrong:
                self.now = "calm"
                await asyncio.sleep(self.random.uniform(0, _CALM_SECONDS))
                await self._round()
                for task in (keeping, loading):
                    if task.done():
                        task.result()
        finally:
            self.now = "the load ends"
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        await self._well("the end")
        self.now = "waiting for the log's own account"
        return await self._reckon(keeping)

    async def _round(self) -> None:
        disasters = drawn(self.random, self.here, self.lasting, self.only)
        begun = time.monotonic()
        self.now = ", ".join(one.name for one in disasters)
        self.wrong += filter(None, await asyncio.gather(*map(self._late, disasters)))
        mended = time.monotonic()
        await self._well(self.now)
        took = time.monotonic() - mended
        self.slowest = max(self.slowest, took)
        well = time.monotonic()
        self.console.print(f"{well - self.begun:5.0f} s  {self.now}: {mended - begun:.1f} s,"
                           f" well after {took:.1f} s", highlight=False)  # fmt: skip
        self.struck += [Struck(one, begun, well) for one in disasters]
        self.rounds += 1

    async def _late(self, disaster: Disaster) -> str:
        await asyncio.sleep(self.random.uniform(0, 1))
        return await strike(self.here, disaster)

    async def _well(self, after: str) -> None:
        """Until requests go through both Envoys, and decision, access and disclosure of one are in
        ClickHouse: then so is all before it."""
        until = time.monotonic() + _WELL_SECONDS
        for number in SIDECARS:
            traces: list[str] = []
            while not await asyncio.to_thread(self._stored, traces):
                if time.monotonic() > until:
                    self.wrong.append(f"not well {_WELL_SECONDS} s after {after}: "
                                      + await self._evidence(number))  # fmt: skip
                    return
                answer = await self.load.probe(number)
                if answer.status == 200:
                    traces.append(answer.trace)
                await asyncio.sleep(0.3)

    def _stored(self, traces: list[str]) -> bool:
        if not traces:
            return False
        try:
            rows = self.here.query(
                "SELECT uniqExact(kind) FROM audit_log WHERE decision_id IN"
                " (SELECT decision_id FROM decisions WHERE trace_id IN %(traces)s)"
                " AND kind IN ('decision', 'access', 'disclosure')"
                " AND index < (SELECT max(size) FROM checkpoints) GROUP BY decision_id",
                traces=traces,
            )
        except QUERY_ERRORS:
            return False
        return (3,) in rows

    async def _evidence(self, number: int) -> str:
        status = (await self.load.probe(number)).status
        states = [f"{name}: {await self.here.health(name) or 'serving'}"
                  for name in (*CHECKERS, "receiver")]  # fmt: skip
        ends = {name: self.here.running(name) for name in self.here.parts}
        return f"envoy-{number} answers {status}; {'; '.join(states)}; running: {ends}"

    async def _reckon(self, keeping: "asyncio.Task[None]") -> Reckoning:
        """The log told, the senders stopped, verified and counted."""
        here = self.here
        await asyncio.sleep(5)  # answers that were under way
        told = asyncio.to_thread(_tell_all, here)
        with contextlib.suppress(AssertionError):
            await told
        self.now = "stopping"
        keeping.cancel()
        for name in ("envoy-1", "envoy-2", *CHECKERS, "receiver", "opa", "service"):
            if wrong := await here.terminate(name):
                self.wrong.append(wrong)
        self.now = "verifying"
        report = await asyncio.to_thread(_verify, here)
        found = await asyncio.to_thread(reckon, here, self.load, self.struck, report)
        found.wrong = self.wrong + found.wrong
        return found


def _tell_all(here: House) -> None:
    from live import told

    told(here.store, 120)


def _verify(here: House) -> dict[str, Any]:
    """What ``authz verify`` says of it."""
    command = [sys.executable, "-m", "authz", "verify", "--trust", str(here.trust), "--json"]
    done = subprocess.run(command, env={**os.environ, "AUTHZ_STORE": here.store},
                          capture_output=True, text=True, check=False)  # fmt: skip
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"authz verify: {done.returncode} {done.stderr}") from None
    return report


def _progress(soak: Soak, seconds: float) -> Table:
    grid = Table.grid(padding=(0, 2))
    passed = time.monotonic() - soak.begun if soak.begun else 0
    answers = Counter(str(answer.status or "none") for answer in soak.load.answers)
    grid.add_row("time", f"{passed:.0f} of {seconds:.0f} s, round {soak.rounds + 1}")
    grid.add_row("now", soak.now)
    grid.add_row("requests", _counts(answers))
    grid.add_row("mutated Checks", _counts(soak.load.checks))
    grid.add_row("mutated logs", _counts(soak.load.messages))
    if soak.wrong:
        grid.add_row("[red]wrong[/]", "\n".join(soak.wrong))
    return grid


def _counts(counts: "Counter[str]") -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "-"


def _show(soak: Soak, found: Reckoning, console: Console) -> None:
    table = Table(title="What befell the house", show_header=False, title_justify="left")
    struck = [one.disaster for one in soak.struck if one.disaster != START]
    disasters = Counter(one.kind for one in struck)
    parts = Counter(one.part for one in struck)
    ends = Counter(f"{one.part} ({one.code})" for one in soak.here.ended)
    gaps = found.report["gaps"]
    rows = {
        "rounds": f"{soak.rounds}; well again after {soak.slowest:.1f} s at most",
        "disasters": f"{disasters.total()}: {_counts(disasters)}",
        "parts struck": _counts(parts),
        "parts ended by themselves": _counts(ends),
        "requests": f"{found.requests.total()}: {_counts(found.requests)}",
        "let through": f"{found.passed}, all decided, recorded and allowed; of them"
        f" {found.lost_accesses} without access, {found.lost_disclosures} without disclosure",
        "mutated Checks": f"{soak.load.checks.total()}: {_counts(soak.load.checks)};"
        f" {found.mutated} decisions",
        "mutated access logs": _counts(soak.load.messages),
        "records": f"{found.report['records']}: {found.report['decisions']} decisions,"
        f" {found.report['accesses']} accesses, {found.report['matched']} matched",
        "gaps, by verify": _counts(Counter(gaps)),
        "gaps of our Envoys and writers": _counts(+found.told_gaps),
        "verified": "intact" if found.report["verified"] else "NOT intact",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table)
    for wrong in found.wrong:
        console.print(f"[bold red]wrong[/] {wrong}", markup=True, highlight=False)
    if not found.wrong:
        console.print("[bold green]even[/]: everything that was answered is in the log as it was"
                      " answered, once, and the log verifies")  # fmt: skip


async def _watched(soak: Soak, console: Console) -> Reckoning:
    running = asyncio.create_task(soak.run())
    if not console.is_terminal:
        return await running
    with Live(console=console, refresh_per_second=2) as live:
        while not (await asyncio.wait([running], timeout=0.5))[0]:
            live.update(_progress(soak, soak.seconds))
    return await running


def _unshare() -> None:
    """Go on in namespaces of our own, if that may be; else without disks that can be full."""
    if os.environ.get(_MARK):
        return
    for more in ((), ("--map-root-user",)):
        command = [*_UNSHARE, *more]
        tried = subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
                               capture_output=True, check=False)  # fmt: skip
        if tried.returncode == 0:
            os.environ |= {_MARK: "1", "GRPC_VERBOSITY": "NONE"}
            program = [sys.executable, "-m", "tests.faults.soak", *sys.argv[1:]]
            os.execvp(command[0], [*command, *program])  # noqa: S606 - as it should be


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--lasting", type=float, default=5, help="seconds of a disaster, at most")
    parser.add_argument("--only", default="", help="disasters whose name begins so: 'disk full'")
    parser.add_argument("--keep", action="store_true", help="keep logs and data")
    options = parser.parse_args()
    _unshare()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    console = Console(width=None if sys.stdout.isatty() else 120)
    disks = bool(os.environ.get(_MARK))
    directory = Path(tempfile.mkdtemp(prefix="authz-soak-"))
    console.print(f"seed {options.seed}, {options.minutes:g} minutes, in {directory}")
    if not disks:
        console.print("no disk gets full: this user may not mount one (unshare)")
    with house(directory, disks=disks) as here:
        soak = Soak(here, Load(here, options.seed), Random(options.seed), options.minutes * 60,
                    options.lasting, options.only, console)  # fmt: skip
        even = False
        try:
            found = asyncio.run(_watched(soak, console))
            _show(soak, found, console)
            even = not found.wrong
        except Exception:  # noqa: BLE001 - what is left of the house is kept
            console.print_exception()
        asyncio.run(here.terminate("clickhouse"))
        if options.keep or not even:
            kept = Path(tempfile.mkdtemp(prefix="authz-soak-kept-"))
            shutil.copytree(directory, kept, dirs_exist_ok=True, symlinks=True,
                            ignore=shutil.ignore_patterns("*.sock"))  # fmt: skip
            console.print(f"what is left of it: {kept}")
    shutil.rmtree(directory, ignore_errors=True)
    sys.exit(0 if even else 1)


if __name__ == "__main__":
    main()
