"""Six years of a hospital in the embedded ClickHouse, as the receiver would have left them.

The generator makes sixteen weeks of requests and of what the log says of itself; the database
repeats them twenty times, each later by sixteen weeks, up to now. Decisions, accesses and
disclosures are rows of their own, people stay, and of the patients two thirds are others each time.
Hashes are random, and there are no tiles: nothing here is verified.
"""

import hashlib
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from clickhouse_driver import Client

from authz.record import FIELDS, canonical, clean, notice
from authz.store import rows
from authz.store.migrations import migrate
from tests.bench.detect.hospital import generate
from tests.bench.detect.options import Options

ORIGIN: Final = "bench/receiver"
COPIES: Final = 20
DAYS: Final = 112
_DAY_US: Final = 86_400_000_000
_MINUTE_US: Final = 60_000_000
_BATCH: Final = 50_000
_NOTICES: Final = 2 * 1_440  # a day
_AT_ONCE: Final = 50_000  # rows of the base

# Of a request there are three rows; what the log says of itself is one. `copy` counts from 0.
_DECISION, _ACCESS, _DISCLOSURE, _OTHER = range(4)
_OF_ENVOY: Final = (
    "response_details", "bytes_in", "bytes_out", "duration_us", "upstream", "status", "country",
    "decided_by",
)  # fmt: skip
_OTHERS_PATIENTS = (
    "arrayMap(one -> if(cityHash64(one) % 3 = 0, one, concat(substring(one, 1, 9),"
    " substring(base64URLEncode(MD5(concat(one, toString({copy})))), 1, 22))), {patients})"
)
_REPEAT = """INSERT INTO audit_log ({names}) SELECT {values}
FROM base ARRAY JOIN if(base.decision_id = '', [{other}],
  [{decision}, {access}, {disclosure}]) AS part
WHERE base.index >= {begin} AND base.index < {begin} + {rows}
  AND base.sealed_at + INTERVAL {shift} MICROSECOND < now64(6)
  AND NOT (part = {disclosure} AND NOT base.allowed)
ORDER BY base.index, part"""
_CHECKPOINTS = """INSERT INTO checkpoints (origin, size, note, written_at)
SELECT origin, index + 1, concat(origin, '\\n', toString(index + 1), '\\n',
  base64Encode(randomString(32)), '\\n\\n— ', origin, ' ', base64Encode(randomString(68)), '\\n'),
  sealed_at FROM audit_log WHERE origin = '{origin}' AND index % 3 = 0
  AND index >= {first} AND index < {end}"""


@dataclass(frozen=True, slots=True)
class Filled:
    """What was made."""

    records: int
    people: int
    patients: int


def fill(client: Client, records: int, progress: Callable[[int], None]) -> Filled:
    """About so many `records`; `progress` is told how many of `COPIES` are there."""
    migrate(client)
    requests = max(records / COPIES / DAYS - _NOTICES, 0) / 3
    options = Options(
        people=max(int(requests / 8.1), 200), patients=max(int(requests * 2.7), 4_000), days=DAYS,
        misuses=0,
    )  # fmt: skip
    _base(client, options)
    for copy in range(COPIES):
        _repeat(client, options, copy)
        progress(copy + 1)
    [(count,)] = client.execute("SELECT count() FROM audit_log")
    return Filled(count, options.people, options.patients)


def _base(client: Client, options: Options) -> None:
    """One part, with places of its own, in the table `base`."""
    client.execute("CREATE TABLE base AS audit_log")
    told = _with_notices(generate(options).records(), options)
    first = 0
    while batch := list(islice(told, _BATCH)):
        leaves = [
            canonical(clean(record | {
                "origin": ORIGIN, "index": first + number, "sealed_at": record["time"] + 1_200_000,
            }))
            for number, record in enumerate(batch)
        ]  # fmt: skip
        rows.insert(client, leaves)
        first += len(batch)
    client.execute("INSERT INTO base SELECT * FROM audit_log")
    for table in ("audit_log", "activity_hourly", "baseline_daily"):
        client.execute(f"TRUNCATE TABLE {table}")


def _with_notices(records: Iterator[dict[str, Any]], options: Options) -> Iterator[dict[str, Any]]:
    """The accesses (their decisions are made of them later), and between them what receiver,
    writers, watch and readers tell of themselves."""
    drawn = random.Random(options.seed)
    recent: deque[str] = deque(maxlen=500)
    minute = options.begin(0) * 1_000_000
    day, counted = minute, 0
    for record in records:
        while record["time"] > minute:
            yield from _minute(minute, counted)
            minute, counted = minute + _MINUTE_US, 0
        if record["time"] > day:
            yield from _day(day, drawn, options)
            day += _DAY_US
        if record["kind"] == "access":
            counted += 1
            if "patients" in record:
                recent.extend(record["patients"])
            elif record.get("action") == "E" and recent:
                record["records"] = drawn.choices(recent, k=8)  # whom the answer holds
            yield record


def _minute(at: int, decisions: int) -> Iterator[dict[str, Any]]:
    told = {"decisions": decisions, "matched": decisions, "unanswered": 0, "missing": 0}
    yield _notice("interval_summary", at, told)
    head = {"sequence": at // _MINUTE_US, "hash": hashlib.sha256(str(at).encode()).hexdigest()}
    yield _notice("chain_head", at, head, writer="ext-authz-0")


def _day(at: int, drawn: random.Random, options: Options) -> Iterator[dict[str, Any]]:
    told = {"date": time.strftime("%Y-%m-%d", time.gmtime(at / 1e6)), "people": options.people}
    yield _notice("watch_day", at, told | {"charts": 5_000, "unexplained": 100})
    yield _notice("policy_loaded", at, {"revision": "3f6c1b0f9a55"})
    for _ in range(2):
        yield {
            "kind": "finding", "event": "raised", "time": at, "rule": "bulk_read",
            "lane": drawn.choice(("act", "review")), "score_milli": drawn.randrange(3_000, 9_000),
            "subject": f"bench-{drawn.randrange(options.people)}", "evidence": "40 patients in 5 m",
        }  # fmt: skip
    for _ in range(20):
        yield _notice("look", at, {"command": "console search"}, subject="privacy.officer")
    for event in ("gap", "gap_closed"):
        yield _notice(event, at, {"count": 2}, rule="no_access")


def _notice(event: str, at: int, told: dict[str, Any], **values: Any) -> dict[str, Any]:
    return notice(event, at, told) | values


def _repeat(client: Client, options: Options, copy: int) -> None:
    whole = DAYS * _DAY_US
    end = options.begin(DAYS) * 1_000_000
    days = (time.time_ns() // 1000 - end) // _DAY_US + 1
    shift = days * _DAY_US - (COPIES - 1 - copy) * whole
    [(size,)] = client.execute("SELECT max(index) + 1 FROM base")
    first = copy * size * 3
    for begin in range(0, size, _AT_ONCE):
        client.execute(_REPEAT.format(
            names=", ".join(f"`{field.name}`" for field in FIELDS),
            values=", ".join(_value(field.name, copy, shift, first) for field in FIELDS),
            shift=shift, begin=begin, rows=_AT_ONCE,
            other=_OTHER, decision=_DECISION, access=_ACCESS, disclosure=_DISCLOSURE,
        ))  # fmt: skip
    client.execute(_CHECKPOINTS.format(origin=ORIGIN, first=first, end=first + size * 3))


def _value(name: str, copy: int, shift: int, first: int) -> str:
    """A column of a copy, as SQL over `base` and `part`."""
    column = f"base.`{name}`"
    own = _OTHERS_PATIENTS.format(copy=copy, patients=column)
    held = _OTHERS_PATIENTS.format(copy=copy, patients="base.records")
    base_id = "base.decision_id"
    values = {
        "index": f"{first} + base.index * 3 + if(part = {_OTHER}, 0, part)",
        "kind": f"multiIf(part = {_DECISION}, 'decision', part = {_DISCLOSURE}, 'disclosure',"
        f" {column})",
        "decision_id": f"if({column} = '', '', concat(lower(hex(toUInt32(intDiv("
        f"toUnixTimestamp64Micro(base.time) + {shift}, 65536000)))), substring({column}, 9)))",
        "patients": f"if(part = {_DISCLOSURE} AND empty({column}), {held}, {own})",
        "records": f"if({base_id} = '', {column}, [])",
        "prev": "lower(hex(SHA256(concat(toString(base.index), toString(part)))))",
        "writer_seq": f"{first} + base.index",
        "upstream": f"if(part = {_ACCESS} AND base.allowed, '10.0.3.4:8080', '')",
        "discloses": f"part IN ({_DECISION}, {_ACCESS})",
        "complete": f"part = {_DISCLOSURE}",
        "trace_id": f"if({base_id} = '', '', lower(hex(MD5(base.request_id))))",
    }
    if name in ("time", "sealed_at"):
        return f"{column} + INTERVAL {shift} MICROSECOND"
    if name in values:
        return values[name]
    if name in _OF_ENVOY:
        empty = "0" if name in ("bytes_in", "bytes_out", "duration_us", "status") else "''"
        return f"if(part IN ({_ACCESS}, {_OTHER}), {column}, {empty})"
    return column
