"""A log of 25 days, whole and in parts, and a copy of it to tamper with."""

from contextlib import contextmanager

import pytest
from bench.verify.build import Built
from hypothesis import HealthCheck, settings
from logs import SIGNER, TRUST

from authz.ledger import Checkpoint, Tree, leaf_hash, sign_note
from authz.receiver import sequence
from authz.record import canonical, form
from authz.store import rows
from authz.store.client import connect
from authz.store.logs import StoredLogs
from authz.verify.logs import Window, verify_logs

ORIGIN = SIGNER.name
TABLES = ("audit_log", "tiles", "checkpoints")
HOUR, DAY = 3_600_000_000, 86_400_000_000
BEGIN = 1_700_000_000_000_000  # November 2023
SIZE, TICK, BATCH = 3000, 5, 200  # records, of an hour, under a checkpoint
SINCE, UNTIL = BEGIN + 10 * DAY, BEGIN + 12 * DAY
FIRST, END = 10 * 24 * TICK, 12 * 24 * TICK  # the records of that time
FAR = 256 + BATCH  # what is read beside a window: to a whole tile, and to a checkpoint
MORE = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Counted(StoredLogs):
    """Tells what was read."""

    def __init__(self, client):
        super().__init__(client)
        self.read = set()
        self.steps = 0

    def part(self, origin, first, end):
        self.read.update(range(first, end))
        return super().part(origin, first, end)

    def records(self, origin, first, end):
        if end > 1:  # whether a log follows another, its first record tells
            self.read.update(range(first, end))
        return super().records(origin, first, end)

    def sealed_from(self, origin, first, end):
        self.steps += 1
        return super().sealed_from(origin, first, end)


class AsOf(Counted):
    """The log as it was with `size` records, which a checkpoint is over."""

    grows = False

    def __init__(self, client, size):
        super().__init__(client)
        self.size = size

    def tiles(self, origin, level, first, end):
        found = super().tiles(origin, level, first, end)
        width = self.size >> 8 * level
        cut = [(index, data[: max(width - 256 * index, 0) * 32]) for index, data in found]
        return [(index, data) for index, data in cut if data]

    def newest(self, origin, beyond=-1):
        return (one for one in super().newest(origin, beyond) if one[0] <= self.size)

    def beyond(self, origin, size):
        return 0, 0, 0


def fill(log, records, tick=TICK, batch=BATCH):
    """So many records, `tick` of them an hour, of a writer and of Envoy in turn."""
    made = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence.time, "time_ns", lambda: (BEGIN + made // tick * HOUR) * 1000)
        while made < records:
            if made == 0:
                group = log.written([log.identity.start_notice(BEGIN, "1")])
            elif made % (11 * tick) == 0:
                group = log.written([log.identity.head_notice(BEGIN, *log.chain.place)])
            elif made // tick % 2:
                group = log.written([_record(made + n, "decision") for n in range(tick)])
            else:
                group = [_record(made + n, "access") for n in range(tick)]
            while len(group) < min(tick, records - made):
                group.append(_record(made + len(group), "access"))
            group = group[: records - made]
            log.append(group)
            made += len(group)
            if made % batch == 0 or made == records:
                log.seal()


def _record(number, kind):
    record = {"kind": kind, "time": BEGIN + number, "subject": f"p{number}", "patients": ["t", "u"]}
    return record | {"decision_id": f"d{number}", "allowed": True, "roles": ["physician"]}


def filled(clickhouse, directory, name, records, **how):
    store = f"{clickhouse.store.rpartition('/')[0]}/{name}"
    with connect(clickhouse.store) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    log = Built(directory, store)
    fill(log, records, **how)
    log.end()
    return store


@contextmanager
def untouched(clickhouse, tmp_path_factory):
    """An untouched log, and a database to tamper with."""
    filled(clickhouse, tmp_path_factory.mktemp("log"), "partial_base", SIZE)
    yield filled(clickhouse, tmp_path_factory.mktemp("log"), "partial_copy", 0)
    with connect(clickhouse.store) as admin:
        for name in ("partial_base", "partial_copy"):
            admin.execute(f"DROP DATABASE {name}")


@contextmanager
def tampered(base):
    """The copy, as it was."""
    with pytest.MonkeyPatch.context() as patch, connect(base, mutations_sync=1) as client:
        patch.setattr("authz.verify.checkpoints.UNSEALED_SECONDS", 0)
        reset(client)
        yield client


def reset(client):
    for table in TABLES:
        client.execute(f"TRUNCATE TABLE {table}")
        client.execute(f"INSERT INTO {table} SELECT * FROM partial_base.{table}")


def told(report):
    assert report.verified == (not report.findings)
    return [(finding.kind, finding.first, finding.last) for finding in report.findings]


def window(client, since=SINCE, until=UNTIL, state=None):
    """What is found in a window, and what was read for it."""
    source = Counted(client)
    report = verify_logs(source, TRUST, state, window=Window(since, until))
    assert report.partial
    return told(report), source


def replace(client, records):
    """The rows as they were, but for `records`."""
    client.execute("TRUNCATE TABLE audit_log")
    client.execute(
        "INSERT INTO audit_log SELECT * FROM partial_base.audit_log WHERE index NOT IN %(others)s",
        {"others": [-1, *(record.get("index", 0) for record in records)]},
    )
    if records:
        rows.insert(client, [form(record) for record in records])


def changed(client, values, first, end=None):
    """Put `values` in place of those of some records."""
    end = first + 1 if end is None else end
    replace(client, [record | values for record in base_records(client, first, end)])


def base_records(client, first=0, end=SIZE):
    return list(rows.read(client, "partial_base.audit_log", ORIGIN, first, end))


def all_records(client, first=0, end=SIZE):
    return list(rows.read(client, "audit_log", ORIGIN, first, end))


def rewrite(client, change):
    """The rows of the log as `change` has them."""
    records = change(all_records(client))
    client.execute("TRUNCATE TABLE audit_log")
    rows.insert(client, [form(record) for record in records])


def hashes(client):
    return [leaf_hash(canonical(record)) for record in all_records(client)]


def seal_again(client, size, leaves, tiles=True):
    """A checkpoint over the first `size` of `leaves`, by the log's own key, and its tiles."""
    tree = Tree()
    done = [*tree.append(leaves[:size]), *tree.partial_tiles()]
    note = sign_note(Checkpoint(ORIGIN, size, tree.root()).text(), SIGNER)
    client.execute("ALTER TABLE checkpoints DELETE WHERE size = %(size)s", {"size": size})
    client.execute("INSERT INTO checkpoints (origin, size, note) VALUES", [(ORIGIN, size, note)])
    if tiles:
        client.execute("TRUNCATE TABLE tiles")
        client.execute(
            "INSERT INTO tiles (origin, level, index, width, data) VALUES",
            [(ORIGIN, t.level, t.index, len(t.hashes), t.data) for t in done],
        )
