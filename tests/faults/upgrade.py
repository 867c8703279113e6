"""Upgrades a running house from the version before, part by part, under load; nothing may be lost.

    python -m tests.faults.upgrade [--from COMMIT] [--seconds S]

The version before is built from this repository's history as a wheel, into a virtual environment
of its own, with the libraries of this one. The house is two pods on one ClickHouse, each an Envoy
with its ext-authz and a receiver with its log. Twice, each time in another order, requests go
through both Envoys without a pause while the schema and each receiver and ext-authz become those of
this version, with `--seconds` of each mixture. Exit 1 if a request was let through that is not in
the log as allowed, if anything is there twice, if a decision without its access is not told as a
gap or anything else is, or if `authz verify` finds anything.
"""

import argparse
import asyncio
import itertools
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from live import ACCOUNTS, Account, Answer, Told, Tuned, account, during, settle, told
from rich.console import Console

from authz.demo.people import Request, plan
from authz.demo.stack import Part, running
from authz.store import migrations
from authz.store.client import connect

CHECKOUT = Path(__file__).parents[2]
BEFORE = "8b270cddf08cafadf790583151a08932d244035f"  # the last with schema 7
NOW = [sys.executable, "-m", "authz"]
SCHEMA = "schema"
ORDERS = (
    (SCHEMA, (0, "receiver"), (0, "ext-authz"), (1, "receiver"), (1, "ext-authz")),
    ((0, "ext-authz"), SCHEMA, (1, "receiver"), (1, "ext-authz"), (0, "receiver")),
)  # each a step: the schema, or which pod's part


def built(commit: str, directory: Path) -> list[str]:
    """The program of `commit`, as a command's first words."""
    source, home = directory / "source", directory / "venv"
    source.mkdir(parents=True)
    archive = ["git", "-C", str(CHECKOUT), "archive", commit]
    packed = subprocess.run(archive, check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "-x", "-C", str(source)], input=packed, check=True)
    venv.create(home, with_pip=True)
    python = str(home / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--no-deps", str(source)], check=True)
    libraries = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    (libraries / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    program = [python, "-I", "-m", "authz"]  # -I: never this checkout's
    where = [python, "-I", "-c", "import authz; print(authz.__file__)"]
    found = subprocess.run(where, check=True, capture_output=True, text=True).stdout
    assert found.startswith(str(home)), found
    return program


class Mixed(Tuned):
    """A pod that begins as the version before."""

    def __init__(self, directory: Path, before: Sequence[str]) -> None:
        super().__init__(directory, receiver=ACCOUNTS)
        self._before = before

    def upgrade(self, part: str) -> None:
        self.parts[part].stop()
        self._be(part, NOW)
        self.restart(part)

    def _be(self, part: str, program: Sequence[str]) -> None:
        command = self.parts[part].command
        self.parts[part].command = [*program, *command[command.index("serve") :]]

    def _add_ext_authz(self) -> None:
        super()._add_ext_authz()
        self._be("ext-authz", self._before)

    def _add_receiver(self) -> None:
        super()._add_receiver()
        self._be("receiver", self._before)


class Shared(Part):
    """A part that is up already, and another pod's to stop."""

    def start(self) -> None: ...

    def wait_until_up(self) -> None: ...

    def stop(self) -> None: ...


class Second(Mixed):
    """A second pod, on the first one's ClickHouse; `trust` is of both logs."""

    def __init__(self, directory: Path, before: Sequence[str], first: Mixed) -> None:
        super().__init__(directory, before)
        self._first = first

    @property
    def trust(self) -> Path:
        files = [self._first.trust, super().trust]
        logs = [log for file in files for log in yaml.safe_load(file.read_text())["logs"]]
        path = self.data_dir / "trust.yaml"
        path.write_text(yaml.safe_dump({"logs": logs}))
        return path

    def _add_clickhouse(self) -> None:
        its = self._first.parts["clickhouse"]
        self.parts["clickhouse"] = Shared(its.name, its.command, its.log, {}, its.address)

    def _add_receiver(self) -> None:
        super()._add_receiver()
        command = self.parts["receiver"].command
        command[command.index("--origin") + 1] = "demo/second"


def schema(store: str) -> int:
    with connect(store) as client:
        return migrations.version(client)


def upgraded(first: Mixed, second: Second, order: Sequence[Any], seconds: float) -> Iterator[str]:
    """Upgrades in this order; yields what is wrong."""
    pods, store = (first, second), first.store
    if schema(store) >= migrations.VERSION:
        yield f"it began with schema {schema(store)}"

    def change() -> None:
        time.sleep(seconds)
        for step in order:
            if step == SCHEMA:
                command = [*NOW, "migrate", "--store", store]
                subprocess.run(command, check=True, stdout=sys.stderr)
            else:
                pod, part = step
                pods[pod].upgrade(part)
            time.sleep(seconds)

    def load(seed: int) -> Iterator[Request]:
        return itertools.chain.from_iterable(plan(1000, seed + n) for n in itertools.count())

    answers: list[Answer] = []
    others = during(lambda: answers.extend(during(change, second, load(1))), first, load(1_000_000))
    if schema(store) != migrations.VERSION:
        yield f"it ended with schema {schema(store)}"
    asyncio.run(settle(first))
    yield from faults(store, answers + others, account(second), told(store))


def faults(store: str, answers: list[Answer], found: Account, said: Told) -> Iterator[str]:
    if found.report.findings:
        yield f"verify: {found.report.findings[:3]}"
    if missing := found.missing(answers):
        yield f"{len(missing)} answers are not in the log as they were given: {missing[:3]}"
    if found.doubled:
        yield f"there twice: {found.doubled[:3]}"
    if found.invented:
        yield f"{found.invented} accesses name a decision that nobody recorded"
    with connect(store) as client:
        query = "SELECT sum(decisions), (SELECT count() FROM decisions) FROM activity_hourly"
        [(counted, decisions)] = client.execute(query)
    if counted != decisions:
        yield f"activity_hourly counts {counted} decisions of {decisions}"
    became = {name: said.sums[name] for name in ("matched", "unanswered", "unseen", "missing")}
    if said.sums["decisions"] != sum(became.values()):
        yield f"of {said.sums['decisions']} decisions these are told: {became}"
    gaps = said.gaps - said.closed
    if gaps["no_access"] != became["missing"] or gaps.keys() - {"no_access", "no_disclosure"}:
        yield f"gaps that no restart explains: {dict(gaps)}"
    statuses = dict(Counter(answer.status for answer in answers))
    print(f"answers: {statuses}; decisions: {became}; gaps: {dict(gaps)}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--from", dest="commit", default=BEFORE)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    console = Console(stderr=True)
    failed = False
    with tempfile.TemporaryDirectory(prefix="authz-upgrade-") as name:
        with console.status(f"building {options.commit[:12]}"):
            before = built(options.commit, Path(name))
        for number, order in enumerate(ORDERS):
            first = Mixed(Path(name) / str(number), before)
            second = Second(Path(name) / f"{number}-second", before, first)
            with running(first, lambda _: None), running(second, lambda _: None):
                wrong = list(upgraded(first, second, order, options.seconds))
            console.print(f"order {number + 1}: {'; '.join(wrong) or 'nothing is lost'}")
            failed |= bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
