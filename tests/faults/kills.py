"""kill -9 at random moments, and after each the whole count and verification.

    python -m tests.faults.kills [--kills N] [--seed S]

Of ten kills eight hit the receiver, one ClickHouse, one both; a quarter of them while it starts,
the rest under load. Exit 1 at the first record that is lost, doubled or wrongly told a gap.
"""

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .feeding import Feeder, Server, Site, check, database, ready, site

LOG_KILLS = 25  # with one log and database; then anew, so that the check stays short


async def kill_on(
    here: Site, server: Server, kills: int, random: Random, told: Callable[[str, Feeder], None]
) -> Feeder:
    """`kills` of one log; raises `AssertionError` with what is wrong after the first that hurts."""
    async with Feeder(here.directory / "writer", here.address) as feeder:
        here.start()
        for number in range(kills):
            await ready(here)
            starting = random.random() < 0.25
            if starting:
                here.kill()
                here.start()
            await feeder.feed(
                random.uniform(0, 0.9 if starting else 0.6),
                count=random.choice((1, 5, 30)),
                pause=random.choice((0.002, 0.01, 0.03)),
            )
            part = random.choice(["receiver"] * 8 + ["clickhouse", "both"])
            if part != "receiver":
                server.kill()
            if part != "clickhouse":
                here.kill()
                here.start()
            await feeder.feed(random.uniform(0, 0.1))
            if part != "receiver":
                server.start()
            await feeder.settle()
            count = check(here, feeder)
            assert not count.wrong, f"after kill {number} ({part}): {count.wrong}"
            assert here.ended is None
            told("starting" if starting else part, feeder)
        await ready(here)
        assert here.stop() == 0
        count = check(here, feeder)
        assert not count.wrong, f"after the stop: {count.wrong}"
        return feeder


def soak(
    directory: Path, kills: int, seed: int, told: Callable[[str, Feeder], None]
) -> Counter[str]:
    """All of it; what was killed how often, and how many records there were."""
    random, total = Random(seed), Counter[str]()
    server = Server(directory / "clickhouse")
    try:
        for first in range(0, kills, LOG_KILLS):
            number = min(LOG_KILLS, kills - first)
            where = directory / f"from-{first}"
            with database(server.store) as store, site(where, store) as here:

                def count(part: str, feeder: Feeder) -> None:
                    total[part] += 1
                    told(part, feeder)

                feeder = asyncio.run(kill_on(here, server, number, random, count))
            total["records"] += feeder.writer.journal.next - 1
            total["accesses, acknowledged"] += len(feeder.sure)
            total["accesses, unclear"] += len(feeder.unsure)
    finally:
        server.stop()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    begun, console = time.monotonic(), Console()
    directory = Path(tempfile.mkdtemp(prefix="authz-kills-"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(f"seed {options.seed}", total=options.kills)
        try:
            total = soak(directory, options.kills, options.seed, lambda *_: bar.advance(task))
        except AssertionError as error:
            console.print(f"seed {options.seed}: {error}; all of it is in {directory}")
            sys.exit(1)
    told = ", ".join(f"{number} {name}" for name, number in total.items())
    console.print(f"seed {options.seed}: {options.kills} kills in {time.monotonic() - begun:.0f} s:"
                  f" {told}; nothing lost, nothing doubled, no false alarm")  # fmt: skip


if __name__ == "__main__":
    main()
