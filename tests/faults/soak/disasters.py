"""What befalls the house. Each disaster has a part that it strikes, lasts for some seconds, and is
mended. What it may cost is in `hits`: whose access log entries, whose disclosures."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from .house import CHECKERS, CLOCKED, DISKS, ENVOYS, House

_OFFSETS = (-3 * 86_400, -3600, -60, -2, 2, 60, 540, 3600, 3 * 86_400)  # seconds
_MOST_AHEAD = 540  # of the receiver: from ten minutes on, `authz verify` says so (backdated)


@dataclass(frozen=True, slots=True)
class Disaster:
    kind: str
    part: str
    seconds: float
    """How long it lasts."""
    amount: float = 0
    """Of a clock: seconds ahead. Of a certificate: seconds that it is still good for."""

    @property
    def name(self) -> str:
        amount = f" {self.amount:+.0f} s" if self.kind == "clock" else ""
        return f"{self.kind} {self.part}{amount}"


START = Disaster("start", "all", 0)
"""Requests may come before all are up; no disaster that is drawn."""


@dataclass(frozen=True, slots=True)
class Struck:
    """A disaster as it was: from `begun` until all was well again (`time.monotonic()`)."""

    disaster: Disaster
    begun: float
    mended: float


def loses_accesses(disaster: Disaster, envoy: str) -> bool:
    """Whether entries of `envoy` may be lost by it: Envoy itself, or what it sends them to, was
    away, stopped reading, or could not be spoken to."""
    return disaster.part in (envoy, "receiver") or disaster.kind in ("certificate", "start")


def loses_disclosures(disaster: Disaster, number: int) -> bool:
    """Whether answers that `envoy-number` shows may not be seen or recorded."""
    return disaster.part in (f"envoy-{number}", f"ext-authz-{number}") or disaster == START


async def _killed(house: House, disaster: Disaster) -> str:
    house.kill(disaster.part)
    await asyncio.sleep(disaster.seconds)
    house.kept.add(disaster.part)
    return ""


async def _terminated(house: House, disaster: Disaster) -> str:
    wrong = await house.terminate(disaster.part)
    await asyncio.sleep(disaster.seconds)
    house.kept.add(disaster.part)
    return wrong


async def _stopped(house: House, disaster: Disaster) -> str:
    house.signal(disaster.part, signal.SIGSTOP, group=True)
    try:
        await asyncio.sleep(disaster.seconds)
    finally:
        house.signal(disaster.part, signal.SIGCONT, group=True)
    return ""


async def _clock(house: House, disaster: Disaster) -> str:
    house.set_clock(disaster.part, disaster.amount)
    try:
        await asyncio.sleep(disaster.seconds)
    finally:
        house.set_clock(disaster.part, 0)
    return ""


async def _disk(house: House, disaster: Disaster) -> str:
    ballast = await asyncio.to_thread(house.fill, disaster.part)
    try:
        await asyncio.sleep(disaster.seconds)
    finally:
        ballast.unlink()
    return ""


async def _certificate(house: House, disaster: Disaster) -> str:
    """It runs out, and every connection that was made with it breaks; a new one comes while the
    processes run, and nobody starts them again."""
    names = ("receiver", *CHECKERS, *ENVOYS) if disaster.part == "all" else (disaster.part,)
    for name in names:
        house.certify(name, disaster.amount)
    await asyncio.sleep(max(disaster.amount, 0) + 1)
    wrong = await house.terminate("receiver")
    house.kept.add("receiver")
    await asyncio.sleep(disaster.seconds)
    for name in names:
        house.certify(name)
    return wrong


_KINDS: dict[str, Callable[[House, Disaster], Awaitable[str]]] = {
    "SIGKILL": _killed,
    "SIGTERM": _terminated,
    "SIGSTOP": _stopped,
    "clock": _clock,
    "disk full": _disk,
    "certificate": _certificate,
}


async def strike(house: House, disaster: Disaster) -> str:
    """Until it is over; returns what is wrong with how a part took it."""
    house.under_way.append(disaster.name)
    try:
        return await _KINDS[disaster.kind](house, disaster)
    finally:
        house.under_way.remove(disaster.name)


def drawn(random: Random, house: House, seconds: float, only: str) -> list[Disaster]:
    """One to three disasters that come at once, no two of one part; names begin with `only`."""
    found: dict[str, Disaster] = {}
    for _ in range(random.choice((1, 1, 2, 2, 3))):
        while not (one := _one(random, house, seconds)).name.startswith(only):
            pass
        struck = {"receiver"} if one.kind == "certificate" else {one.part}
        if not struck & found.keys():
            found |= dict.fromkeys(struck, one)
    return list(found.values())


def _one(random: Random, house: House, seconds: float) -> Disaster:
    everybody = (
        ["receiver"] * 3 + ["clickhouse", "opa"] * 2 + [*CHECKERS, *ENVOYS] * 2 + ["service"]
    )
    kinds = ["SIGKILL"] * 4 + ["SIGTERM"] * 3 + ["SIGSTOP"] * 3 + ["certificate"] * 2
    kinds += ["clock"] * 3 if house.clocked else []
    kinds += ["disk full"] * 3 if house.disks else []
    kind = random.choice(kinds)
    lasts = random.choice((0, random.uniform(0, 1), random.uniform(0, seconds)))
    match kind:
        case "clock":
            part, amount = random.choice(CLOCKED), random.choice(_OFFSETS)
            amount = min(amount, _MOST_AHEAD) if part == "receiver" else amount
            return Disaster(kind, part, lasts + 1, amount)
        case "disk full":
            return Disaster(kind, random.choice(list(DISKS)), lasts + 1)
        case "certificate":
            whose = random.choice(("all", "receiver", *CHECKERS, *ENVOYS))
            return Disaster(kind, whose, lasts + 1, random.choice((-3600, 0.5)))
    return Disaster(kind, random.choice(everybody), lasts)
