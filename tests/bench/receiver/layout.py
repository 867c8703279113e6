"""How ClickHouse keeps records: what each column costs by its type and codec, and by the order.

    python -m tests.bench.receiver.layout [--records N]

The records are those of a receiver at 2,000 requests a second, made from what was recorded by the
code that makes real ones. Each layout is the schema's table with something changed; every one gets
the same rows, is merged to one part, and its columns are weighed.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from clickhouse_driver import Client
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from rich.console import Console
from rich.table import Table

from authz.envoy.access_log import http_access
from authz.journal.chain import Chain
from authz.journal.segments import Journal
from authz.ledger import Tree, leaf_hash
from authz.receiver.access import access_record
from authz.record import FIELDS, Record, Value, form
from authz.record.resource import Resources
from authz.store import embedded, migrations, rows
from authz.store.client import connect
from authz.store.layout import Layout as Form
from tests.bench.receiver.parts import cpu_seconds
from tests.bench.receiver.replay import Request, World, message

ORIGIN = "prod-eu1/receiver-0"
_RATE = 2000
_ENVOYS = 8
_STEP_US = 20_000  # decisions come in groups of so much time
_FLUSH_US = 1_000_000


def log(count: int, seed: int = 1) -> Iterator[list[Record]]:
    """Groups of records in the order of a log of both accounts, `count` in all."""
    world, random = World(seed), Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        chains = []
        for number in range(2):
            journal = Journal(Path(directory) / str(number))
            chains.append(Chain(f"ext-authz-7f9c4d5b8-{number}", journal))
        yield from _grouped(world, random, chains, count)
        # The journals were only there to begin the chains.


def _grouped(
    world: World, random: Random, chains: Sequence[Chain], count: int
) -> Iterator[list[Record]]:
    resources = Resources((), ())
    now = 1_795_000_000_000_000
    buffered: list[list[tuple[Request, int]]] = [[] for _ in range(_ENVOYS)]
    flushes = [now + _FLUSH_US * n // _ENVOYS for n in range(_ENVOYS)]
    index = 0
    while index < count:
        arrived = world.requests(_RATE * _STEP_US // 1_000_000, now // 1000)
        times = sorted(now + random.randrange(_STEP_US) for _ in arrived)
        now += _STEP_US
        told: list[tuple[Record, int]] = []
        for request, at_us in zip(arrived, times, strict=True):
            if record := request.decision(at_us):
                told.append((record, hash(record["subject"]) % len(chains)))
            buffered[random.randrange(_ENVOYS)].append((request, at_us))
        groups = []
        for number, chain in enumerate(chains):
            own = [(record, b"") for record, of in told if of == number]
            if own:
                chain.frame(own, chain.place[0] + 1)
                chain.committed()
                groups.append([record for record, _ in own])
        for number, at_us in enumerate(flushes):
            if at_us <= now and buffered[number]:
                flushes[number] += _FLUSH_US
                ended = sorted(buffered[number], key=lambda e: e[1] + e[0].template.duration_us)
                buffered[number] = []
                parsed = StreamAccessLogsMessage.FromString(message(ended))
                node = f"sidecar-{number}"
                groups.append(
                    [
                        access_record(http_access(entry), node, resources, None)
                        for entry in parsed.http_logs.log_entry
                    ]
                )
        for group in groups:
            for record in group:
                record |= {"origin": ORIGIN, "index": index, "sealed_at": now + 3000}
                index += 1
            yield group


@dataclass(frozen=True)
class Layout:
    """The schema's table, with other `columns` (the type and codec) by name."""

    name: str
    columns: dict[str, str] = field(default_factory=dict)
    order: str = "origin, index"
    values: dict[str, str] = field(default_factory=dict)
    """Expressions over the schema's columns, where a column does not hold its text as it is."""
    settings: str = ""
    indexes: tuple[str, ...] | None = None


def _zstd(level: int) -> dict[str, str]:
    return {f.name: f.column.replace("ZSTD(1)", f"ZSTD({level})") for f in FIELDS}


_UUIDS = {
    "decision_id": "toUUIDOrZero(decision_id)", "request_id": "toUUIDOrZero(request_id)",
}  # fmt: skip
_RAW = {"prev": "if(prev = '', '', unhex(prev))"}
_LOWS = dict.fromkeys(("subject", "source_ip"), "LowCardinality(String) CODEC(ZSTD(1))")
_PATIENTS = {
    "patients": "Array(LowCardinality(String)) CODEC(ZSTD(1))",
    "resource_id": "LowCardinality(String) CODEC(ZSTD(1))",
}
_TIMES = {"time": "DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1))"}


def _uuid(codec: str) -> dict[str, str]:
    return dict.fromkeys(_UUIDS, f"UUID CODEC({codec})")


def _few(level: int, *names: str) -> dict[str, str]:
    return {name: _zstd(level)[name] for name in names}


_BEST = {
    **_zstd(3), **_uuid("ZSTD(3)"), "prev": "String CODEC(ZSTD(1))", **_LOWS, **_PATIENTS, **_TIMES
}  # fmt: skip
LAYOUTS = (
    Layout("schema"),
    Layout("all ZSTD(3)", _zstd(3)),
    Layout("all ZSTD(6)", _zstd(6)),
    Layout("all ZSTD(9)", _zstd(9)),
    Layout("ids UUID ZSTD(1)", _uuid("ZSTD(1)"), values=_UUIDS),
    Layout("ids UUID ZSTD(3)", _uuid("ZSTD(3)"), values=_UUIDS),
    Layout("ids UUID LZ4", _uuid("LZ4"), values=_UUIDS),
    Layout("ids UUID no codec", _uuid("NONE"), values=_UUIDS),
    Layout("prev raw ZSTD(1)", {"prev": "String CODEC(ZSTD(1))"}, values=_RAW),
    Layout("prev FixedString(32)", {"prev": "FixedString(32) CODEC(ZSTD(1))"}, values=_RAW),
    Layout("subject, source_ip LowCardinality", _LOWS),
    Layout("patients, resource_id LowCardinality", _PATIENTS),
    Layout("time Delta", _TIMES),
    Layout("time T64", {"time": "DateTime64(6, 'UTC') CODEC(T64, ZSTD(1))"}),
    Layout("time ZSTD only", {"time": "DateTime64(6, 'UTC') CODEC(ZSTD(1))"}),
    Layout("granules of 32k", settings=", index_granularity = 32768"),
    Layout("blocks of 1 MiB", settings=", min_compress_block_size = 1048576"),
    Layout("granules of 32k, all ZSTD(3)", _zstd(3), settings=", index_granularity = 32768"),
    Layout("no skip indexes", indexes=()),
    Layout("order origin, kind, index", order="origin, kind, index"),
    Layout("order origin, decision_id, index", order="origin, decision_id, index"),
    Layout("ids ZSTD(3)", _few(3, "decision_id", "request_id")),
    Layout("ids ZSTD(6)", _few(6, "decision_id", "request_id")),
    Layout(
        "ids, patients, subject, source_ip, resource_id ZSTD(3)",
        _few(3, "decision_id", "request_id", "patients", "subject", "source_ip", "resource_id"),
    ),
    Layout(
        "the best of each, all text",
        {**_few(3, "decision_id", "request_id"), **_LOWS, **_PATIENTS, **_TIMES},
    ),
    Layout("the best of each", _BEST, values={**_UUIDS, **_RAW}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=300_000)
    options = parser.parse_args()
    console = Console(width=130)
    records = [record for group in log(options.records) for record in group]
    leaves = [form(record) for record in records]
    console.print(
        f"{len(leaves):,} records, {sum(map(len, leaves)) / len(leaves):.0f} bytes a leaf"
    )
    with tempfile.TemporaryDirectory() as directory:
        server = embedded.start(Path(directory))
        try:
            inserts(console, server, records, leaves)
            client = connect(server.store, max_memory_usage=0)
            client.execute("OPTIMIZE TABLE audit_log FINAL")
            found = {one.name: weigh(client, one) for one in LAYOUTS}
        finally:
            server.stop()
    show(console, found, len(leaves))
    console.print(f"beside the table, tiles: {_tiles(leaves):.1f} bytes a record when merged")


def inserts(
    console: Console, server: embedded.Embedded, records: Sequence[Record], leaves: Sequence[bytes]
) -> None:
    """What it costs to insert, by form, compression on the wire, and batch. CPU of the server is
    with its merges."""
    table = Table(title="inserts: µs of CPU a row")
    for name in ("form", "wire", "rows", "here", "ClickHouse", "ms an insert", "bytes, not merged"):
        table.add_column(name, justify="right")
    for made, wire, size in itertools.product(
        (_leaves, _columns), ("none", "lz4"), (1_000, 10_000, 30_000, 100_000)
    ):
        client = connect(server.store, max_memory_usage=0)
        if wire != "none":
            client = connect(f"{server.store}?compression={wire}", max_memory_usage=0)
        client.execute("DROP TABLE IF EXISTS audit_log SYNC")
        client.execute("DROP TABLE IF EXISTS schema_versions SYNC")
        migrations.migrate(client)
        count = min(len(leaves), 30 * size)
        ours, theirs, began = time.process_time(), cpu_seconds(server.process.pid), time.monotonic()
        for first in range(0, count, size):
            made(
                client,
                records[first : min(first + size, count)],
                leaves[first : min(first + size, count)],
            )
        ours, took = time.process_time() - ours, time.monotonic() - began
        while client.execute("SELECT count() FROM system.merges")[0][0]:
            time.sleep(0.05)
        theirs = cpu_seconds(server.process.pid) - theirs
        disk = _on_disk(client, "audit_log")
        table.add_row(
            made.__doc__, wire, f"{size:,}", f"{ours / count * 1e6:.2f}",
            f"{theirs / count * 1e6:.1f}", f"{took / (count / size) * 1e3:.0f}",
            f"{disk / count:.1f}",
        )  # fmt: skip
        client.disconnect()
    console.print(table)
    client = connect(server.store)
    client.execute("TRUNCATE TABLE audit_log")
    for first in range(0, len(leaves), 50_000):
        rows.insert(client, leaves[first : first + 50_000])


def _leaves(client: Client, _: Sequence[Record], leaves: Sequence[bytes]) -> None:
    """leaves"""
    rows.insert(client, leaves)


_DEFAULTS: dict[str, Value] = {"text": "", "int": 0, "time": 0, "bool": False, "texts": []}
_NAMED = ", ".join(f"`{f.name}`" for f in FIELDS)


def _columns(client: Client, records: Sequence[Record], _: Sequence[bytes]) -> None:
    """columns"""
    told = [(f.name, _DEFAULTS[f.type]) for f in FIELDS]
    columns = [[record.get(name, default) for record in records] for name, default in told]
    client.execute(f"INSERT INTO audit_log ({_NAMED}) VALUES", columns, columnar=True)


def weigh(client: Client, layout: Layout) -> dict[str, float]:
    """Bytes by column, of indexes together, and of all on disk."""
    columns = {f.name: layout.columns.get(f.name, f.column) for f in FIELDS}
    ours = migrations._AUDIT_LOG
    tried = replace(
        ours,
        name="tried",
        columns=[f"`{name}` {column}" for name, column in columns.items()],
        indexes=ours.indexes if layout.indexes is None else layout.indexes,
        order=ours.order.replace("origin, index", layout.order),
    )
    client.execute("DROP TABLE IF EXISTS tried SYNC")
    client.execute(Form("").rows_of(tried) + layout.settings)
    values = ", ".join(layout.values.get(f.name, f"`{f.name}`") for f in FIELDS)
    began = time.monotonic()
    client.execute(f"INSERT INTO tried SELECT {values} FROM audit_log")
    client.execute("OPTIMIZE TABLE tried FINAL")
    seconds = time.monotonic() - began
    found = dict(
        client.execute(
            "SELECT name, data_compressed_bytes FROM system.columns"
            " WHERE database = currentDatabase() AND table = 'tried'"
        )
    )
    [(indexed,)] = client.execute(
        "SELECT sum(data_compressed_bytes) FROM system.data_skipping_indices"
        " WHERE database = currentDatabase() AND table = 'tried'"
    )
    disk = _on_disk(client, "tried")
    return {**found, "(skip indexes)": indexed, "(all on disk)": disk, "(seconds)": seconds}


def _on_disk(client: Client, table: str) -> int:
    [(size,)] = client.execute(
        "SELECT sum(bytes_on_disk) FROM system.parts"
        " WHERE database = currentDatabase() AND table = %(table)s AND active",
        {"table": table},
    )
    return int(size)


def show(console: Console, found: dict[str, dict[str, float]], count: int) -> None:
    schema = found["schema"]
    table = Table(title="the schema: bytes a record, by column")
    table.add_column("column")
    table.add_column("bytes", justify="right")
    for name, size in sorted(schema.items(), key=lambda item: -item[1]):
        if size / count >= 0.05 and not name.startswith("("):
            table.add_row(name, f"{size / count:.2f}")
    for name in ("(skip indexes)", "(all on disk)"):
        table.add_row(name, f"{schema[name] / count:.1f}")
    console.print(table)
    table = Table(title="other layouts: bytes a record")
    table.add_column("layout")
    table.add_column("what changes", ratio=1)
    table.add_column("all on disk", justify="right")
    table.add_column("seconds to write and merge", justify="right")
    for layout, sizes in found.items():
        changed = [
            f"{name} {schema[name] / count:.1f} → {size / count:.1f}"
            for name, size in sizes.items()
            if abs(size - schema[name]) / count >= 0.2
            and not name.startswith("(a")
            and name != "(seconds)"
        ]
        total, seconds = sizes["(all on disk)"] / count, sizes["(seconds)"]
        table.add_row(layout, ", ".join(changed), f"{total:.1f}", f"{seconds:.1f}")
    console.print(table)


def _tiles(leaves: Sequence[bytes]) -> float:
    tree = Tree()
    tiles = tree.append(map(leaf_hash, leaves))
    return sum(len(tile.data) for tile in (*tiles, *tree.partial_tiles())) / len(leaves)


if __name__ == "__main__":
    main()
