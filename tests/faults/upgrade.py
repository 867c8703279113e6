"""Upgrades a running house from the version before, part by part, under load; nothing may be lost.

    python -m tests.faults.upgrade [--from COMMIT] [--seconds S]

The version before is built from this repository's history as a wheel, into a virtual environment
of its own, with the libraries of this one. Twice, each time in another order, requests go through
Envoy without a pause while the schema, the receiver and ext-authz become those of this version,
with `--seconds` of each mixture. Exit 1 if a request was let through that is not in the log as
allowed, if anything is there twice, if a decision without its access is not told as a gap or
anything else is, or if `authz verify` finds anything.
"""

import argparse
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

from live import ACCOUNTS, Account, Answer, Told, Tuned, account, during, told
from rich.console import Console

from authz.demo.people import plan
from authz.demo.stack import running
from authz.store import migrations
from authz.store.client import connect

CHECKOUT = Path(__file__).parents[2]
BEFORE = "8b270cddf08cafadf790583151a08932d244035f"  # the last with schema 7
NOW = [sys.executable, "-m", "authz"]
ORDERS = (("schema", "receiver", "ext-authz"), ("ext-authz", "schema", "receiver"))


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
    """A stack that begins as the version before."""

    def __init__(self, directory: Path, before: Sequence[str]) -> None:
        super().__init__(directory, receiver=ACCOUNTS)
        self._before = before

    @property
    def schema(self) -> int:
        with connect(self.store) as client:
            return migrations.version(client)

    def upgrade(self, part: str) -> None:
        if part == "schema":
            subprocess.run([*NOW, "migrate", "--store", self.store], check=True, stdout=sys.stderr)
        else:
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


def upgraded(stack: Mixed, order: Sequence[str], seconds: float) -> Iterator[str]:
    """Upgrades in this order; yields what is wrong."""
    if stack.schema >= migrations.VERSION:
        yield f"it began with schema {stack.schema}"

    def change() -> None:
        time.sleep(seconds)
        for part in order:
            stack.upgrade(part)
            time.sleep(seconds)

    requests = itertools.chain.from_iterable(plan(1000, seed) for seed in itertools.count())
    answers = during(change, stack, requests)
    if stack.schema != migrations.VERSION:
        yield f"it ended with schema {stack.schema}"
    yield from faults(stack, answers, account(stack), told(stack.store))


def faults(stack: Mixed, answers: list[Answer], found: Account, said: Told) -> Iterator[str]:
    if found.report.findings:
        yield f"verify: {found.report.findings[:3]}"
    if missing := found.missing(answers):
        yield f"{len(missing)} answers are not in the log as they were given: {missing[:3]}"
    if found.doubled:
        yield f"there twice: {found.doubled[:3]}"
    if found.invented:
        yield f"{found.invented} accesses name a decision that nobody recorded"
    with connect(stack.store) as client:
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
            stack = Mixed(Path(name) / str(number), before)
            with running(stack, lambda _: None):
                wrong = list(upgraded(stack, order, options.seconds))
            console.print(f"{', '.join(order)}: {'; '.join(wrong) or 'nothing is lost'}")
            failed |= bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
