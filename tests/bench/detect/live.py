"""How soon a finding is told on live traffic: real Envoy, ext-authz, receiver, ClickHouse, watch.

While the demo's people go on working, thirty bad tokens come from one address after another, and
one analyst after another reads in bulk. Told is the time from the request that makes it a finding,
as Envoy saw it, to the line that `authz watch` prints, when the finding is on this process's disk.
Must: p95 60 s. Aim: 5 s.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from authz.demo.people import Person, patient_id
from authz.demo.stack import Stack, running
from authz.demo.traffic import send

_BAD = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImRlbW8tMSJ9.eyJzdWIiOiJ4In0.AAAA"
_TOKENS, _CHARTS = 30, 60


async def measured(stack: Stack, times: int, requests: int) -> dict[str, list[float]]:
    """Seconds, by rule."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "authz", "watch", "--json", "--data-dir", stack.data_dir / "watching",
        env=os.environ | {
            "AUTHZ_STORE": stack.store,
            "AUTHZ_EXT_AUTHZ__RECEIVER": stack.parts["receiver"].address,
        },
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    found: dict[str, list[float]] = defaultdict(list)
    reading = asyncio.create_task(_read(process, found))
    await asyncio.sleep(3)  # it has looked at what is there
    background = asyncio.create_task(send(stack.envoy, stack.keys, requests, None))
    for number in range(times):
        await _bad_tokens(stack, f"127.0.{1 + number // 200}.{2 + number % 200}")
        await _bulk(stack, f"a.{number:03}")
        await asyncio.sleep(0.2)
    await asyncio.sleep(10)
    background.cancel()
    process.terminate()
    await process.wait()
    await reading
    return found


async def _read(process: asyncio.subprocess.Process, found: dict[str, list[float]]) -> None:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        finding = json.loads(line)
        at = datetime.fromisoformat(finding["time"]).timestamp()
        found[finding["rule"]].append(time.time() - at)


async def _bad_tokens(stack: Stack, address: str) -> None:
    """From `address`, whatever the header claims."""
    headers = {"authorization": f"Bearer {_BAD}", "x-forwarded-for": "203.0.113.7"}
    await _get(stack, [f"/fhir/Patient/{patient_id(1)}"] * _TOKENS, lambda: headers, address)


async def _bulk(stack: Stack, subject: str) -> None:
    person = Person(subject, subject, ("analyst",), "lakeside", "HRESCH")
    headers = {"authorization": f"Bearer {stack.keys.token(person)}"}
    paths = [f"/fhir/Observation?patient={patient_id(n + 1)}" for n in range(_CHARTS)]
    await _get(stack, paths, lambda: headers, "127.0.0.1")


async def _get(
    stack: Stack, paths: list[str], headers: Callable[[], dict[str, str]], address: str
) -> None:
    connector = aiohttp.TCPConnector(limit=4, local_addr=(address, 0))
    async with aiohttp.ClientSession(stack.envoy, connector=connector) as session:

        async def one(path: str) -> None:
            async with session.get(path, headers=headers()) as response:
                await response.read()

        await asyncio.gather(*map(one, paths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--requests", type=int, default=20_000, help="of the people in between")
    options = parser.parse_args()
    console = Console(width=110)
    with (
        tempfile.TemporaryDirectory() as directory,
        running(Stack(Path(directory)), lambda _name: None) as stack,
    ):
        found = asyncio.run(measured(stack, options.times, options.requests))
    table = Table(
        title="seconds from the request that makes it a finding to the line that tells it"
    )
    for name in ("rule", "findings", "p50", "p95", "most"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for rule, values in sorted(found.items()):
        values.sort()
        p95 = values[min(round(0.95 * len(values)), len(values) - 1)]
        shown = (statistics.median(values), p95, values[-1])
        table.add_row(rule, str(len(values)), *(f"{value:.2f}" for value in shown))
    console.print(table)


if __name__ == "__main__":
    main()
