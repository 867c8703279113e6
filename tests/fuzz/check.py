"""Fuzz of Check: mutated requests through the real service, each answer held against an oracle.

    python -m tests.fuzz.check [--count N] [--seed S] [--first N] [--threads N] [--processes N]

Needs OPA on the PATH or in ~/go/bin. A request is made from the seed and its number alone: a
finding is made again with ``--seed S --first NUMBER --count 1``. Exit 1 if anything was found.
"""

import argparse
import multiprocessing
import os
import queue
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from .service import Finding, Result, Trial, opa_running
from .smaller import smaller

GROWTH = 1.15  # of the memory after the first fifth, which is
SPARE_BYTES = 24 << 20  # with this much more: allocators do not give all back


def grown(result: Result) -> bool:
    return result.late_rss > result.early_rss * GROWTH + SPARE_BYTES


def work(
    seed: int, first: int, count: int, threads: int, opa: Path, directory: Path, told: Any
) -> None:
    """One process's part; `told` gets numbers of requests done, and at the end the result."""
    directory.mkdir()
    trial = Trial(seed, opa, directory)
    try:
        result = trial.run(first, count, threads, told.put)
        faults_met: dict[str, Finding] = {}
        for finding in result.findings:
            faults_met.setdefault(finding.fault, finding)
        smaller_ones = [made_small(trial, finding) for finding in faults_met.values()]
        result.findings = smaller_ones + result.findings
        told.put(result)
    finally:
        trial.close()


def made_small(trial: Trial, finding: Finding) -> Finding:
    """The first finding of its kind, with a smaller request if that shows the same alone."""
    if not finding.wire or finding.fault not in trial.again(finding.wire):
        return finding
    wire = smaller(finding.wire, lambda wire: finding.fault in trial.again(wire))
    return Finding(finding.number, finding.fault, wire)


def run(options: argparse.Namespace, opa: Path, directory: Path) -> list[Result]:
    told: Any = multiprocessing.get_context("spawn").Queue()
    context = multiprocessing.get_context("spawn")
    share = -(-options.count // options.processes)
    workers = []
    for number in range(options.processes):
        first = options.first + number * share
        count = min(share, options.first + options.count - first)
        if count > 0:
            place = directory / str(number)
            arguments = (options.seed, first, count, options.threads, opa, place, told)
            workers.append(context.Process(target=work, args=arguments))
    for worker in workers:
        worker.start()
    results: list[Result] = []
    with Progress(
        "[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), console=Console(stderr=True),
    ) as progress:  # fmt: skip
        bar = progress.add_task(f"seed {options.seed}", total=options.count)
        while len(results) < len(workers):
            try:
                item = told.get(timeout=2)
            except queue.Empty:
                if any(worker.exitcode for worker in workers):
                    raise SystemExit("a worker ended with an error") from None
                continue
            if isinstance(item, Result):
                results.append(item)
            else:
                progress.advance(bar, item)
    for worker in workers:
        worker.join()
    return results


def show(results: list[Result], count: int, seconds: float) -> None:
    reasons: Counter[str] = sum((result.reasons for result in results), Counter())
    table = Table("What", "Requests", title="Answers by the reason on record")
    for reason, number in reasons.most_common():
        table.add_row(reason, f"{number:,}")
    console = Console()
    console.print(table)
    console.print(
        f"{count:,} requests in {seconds:.0f} s, {count / seconds:,.0f} a second;"
        f" {sum(result.records for result in results):,} records;"
        f" {sum(result.cached for result in results):,} decisions from the cache;"
        f" {sum(result.asked for result in results):,} asked of OPA once more"
    )
    for result in results:
        early, late = result.early_rss / 2**20, result.late_rss / 2**20
        console.print(f"memory: {early:.0f} MiB after the first fifth, {late:.0f} MiB at the end")
        for finding in result.findings[:40]:
            console.print(
                f"FOUND {finding.number}: {finding.fault}\n  {finding.wire!r}", markup=False
            )
    console.print(f"findings: {sum(len(result.findings) for result in results)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1)))
    options = parser.parse_args()
    program = shutil.which("opa") or shutil.which("opa", path=str(Path.home() / "go" / "bin"))
    if program is None:
        sys.exit("opa is missing: go install github.com/open-policy-agent/opa@v1.22.2")
    print(f"seed {options.seed}", flush=True)
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as name,
        opa_running(program, Path(name)) as opa,
    ):
        results = run(options, opa, Path(name))
    show(results, options.count, time.monotonic() - began)
    for result in results:
        if options.count >= 100_000 and grown(result):
            print("FOUND: the memory grows")
            return 1
    return int(any(result.findings for result in results))


if __name__ == "__main__":
    sys.exit(main())
