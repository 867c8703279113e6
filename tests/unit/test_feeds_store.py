"""Feeds in a real ClickHouse: a load is whole or not there, and says what its CSV files say."""

import itertools
import json
import random
import time

import pytest
import schema

from authz import config
from authz.detect import feeds as detect
from authz.detect.feeds import AFTER_US, BEFORE_US
from authz.errors import UnavailableError
from authz.feeds.fhir import Reader
from authz.feeds.load import notices, put
from authz.feeds.loaded import Tables
from authz.feeds.source import Source
from authz.feeds.tables import Names
from authz.record import details_of
from authz.record.privacy import PrivacyKey
from authz.serve.watch import Watch, _take
from authz.store import feeds
from authz.store.client import connect
from tests.detected import access

KEY = PrivacyKey.of(bytes(range(32)))
DAY = 86_400
PEOPLE = [f"n.{number}" for number in range(6)]
CHARTS = [f"p-{number}" for number in range(8)]
TIMES = ["", "2026-03-01", "2026-03-02T08:00:00Z", "2026-03-09T08:00+01:00", "9999-12-31"]


@pytest.fixture
def client(database):
    with connect(database) as client:
        schema.make(client, database)
        yield client


@pytest.fixture
def tables(database, client):
    tables = Tables(connect(database))
    yield tables
    tables.close()


def source(path, only=None):
    return Source(str(path), Names(KEY), Reader(), only)


def load(client, path, only=None, seconds=DAY):
    """A whole load, as the command makes it."""
    reading = source(path, only)
    loading = put(client, reading, int(time.time()) + seconds)
    loading.commit("me", reading.told)
    return loading


def write(directory, name, header, rows):
    lines = [header, *(",".join(row) for row in rows)]
    (directory / f"{name}.csv").write_text("\n".join(lines) + "\n")


def house(directory, seed):
    """Tables of all kinds, drawn at random."""
    draw = random.Random(seed)

    def some(*choices):
        return [[draw.choice(own) for own in choices] for _ in range(20)]

    wards, names = ["", "ward 3", "ward 4"], ["", "Reed", "reed ", "Elm", "de la  Cruz"]
    people = [[who, "nurse", *rest] for who, rest in zip(PEOPLE, some(
        wards, names, ["", "h1", "h2"], ["active", "Terminated"], ["", *CHARTS], TIMES
    ), strict=False)]  # fmt: skip
    write(directory, "people", "subject,role,department,surname,household,status,patient,until",
          people)  # fmt: skip
    charts = [[who, *rest] for who, rest in zip(CHARTS, some(
        names, ["", "h1", "h2"], ["yes", "no"]
    ), strict=False)]  # fmt: skip
    write(directory, "patients", "patient,surname,household,vip", charts)
    for table in detect.REASONS:
        write(directory, table, "subject,patient,from,until", some(PEOPLE, CHARTS, TIMES, TIMES))
    census = some(wards[1:], CHARTS, TIMES, TIMES)
    write(directory, "census", "department,patient,from,until", census)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_tables_say_what_the_files_say(client, tables, tmp_path, seed):
    """Who may look at whom and when, who is gone, who has the same name as whom: from the tables
    it is as detection reads it from the files themselves."""
    house(tmp_path, seed)
    plain = detect.load(tmp_path, KEY.token)
    load(client, tmp_path)
    found = tables.newer()
    moments = sorted(
        {at for by in plain.reasons.values() for own in by.values() for t in own for at in t[:2]}
    )
    around = [
        at + d for at in moments for d in (-BEFORE_US - 1, -BEFORE_US, AFTER_US, AFTER_US + 1)
    ]
    for who, whose, at in itertools.product(PEOPLE, map(KEY.token, CHARTS), around):
        if at < feeds.END:
            assert bool(found.reason(who, whose, at)) == bool(plain.reason(who, whose, at))
    kept = "role department patient gone".split()
    for who in PEOPLE:
        ours, theirs = found.known(who), plain.known(who)
        assert [getattr(ours, one) for one in kept] == [getattr(theirs, one) for one in kept]
        assert min(theirs.until, feeds.END) == ours.until
        for chart in map(KEY.token, CHARTS):
            for name in ("surname", "household"):
                same = getattr(ours, name) == getattr(found.chart(chart), name)
                assert same == (getattr(theirs, name) == getattr(plain.chart(chart), name))
    assert (found.vips, found.staff) == (plain.vips, plain.staff)
    for counts in ("surnames", "households", "departments"):
        ours, theirs = getattr(found, counts), getattr(plain, counts)
        assert sorted(ours.values()) == sorted(theirs.values())
    assert found.explains
    assert abs(found.as_of / 1_000_000 - time.time()) < 600
    assert tables.newer() is None


def test_nothing_in_clear(client, tmp_path):
    """No table holds an identifier, a surname or a household, whatever names them."""
    secret = ("p-5ca1ab1e", "Vandenberghe", "12 Mill Lane")
    patient, surname, household = secret
    write(tmp_path, "people", "subject,surname,household,patient",
          [["n.reed", surname, household, patient]])  # fmt: skip
    write(tmp_path, "patients", "patient,surname,household", [[patient, surname, household]])
    write(tmp_path, "orders", "subject,patient", [["n.reed", patient]])
    load(client, tmp_path)
    for table in feeds.TABLES:
        text = str(client.execute(f"SELECT * FROM {table.name}")).casefold()
        assert text != "[]"
        assert [one for one in secret if one.casefold() in text] == []


@pytest.mark.thorough
def test_a_load_is_whole_or_not_there(client, tables, tmp_path):
    """Readers see the former load until the next is committed, also while one is under way or was
    cut off; a feed that a load does not tell of stays what it was, and one may become empty."""
    header = "subject,patient"
    write(tmp_path, "orders", header, [["n.1", "p-1"]])
    write(tmp_path, "care_team", header, [["n.1", "p-2"]])
    load(client, tmp_path)
    one, two = KEY.token("p-1"), KEY.token("p-2")

    def seen():
        nonlocal latest
        latest = tables.newer() or latest
        return [what for whose in (one, two) for what in [latest.reason("n.1", whose, 5)] if what]

    latest = None
    assert seen() == ["order", "care team"]
    write(tmp_path, "orders", header, [["n.9", "p-9"]] * 30_000)
    reading = source(tmp_path / "orders.csv")
    loading = put(client, reading, int(time.time()) + DAY)
    assert seen() == ["order", "care team"]
    write(tmp_path, "orders", header, [["n.9", "p-9"]] * 30_000 + [["n.9", ""]])
    with pytest.raises(Exception, match="line 30002: patient is empty"):
        load(client, tmp_path / "orders.csv")
    assert seen() == ["order", "care team"]
    [record] = notices(loading, reading, "me", 7)
    assert (record["kind"], record["event"]) == ("notice", "feed_loaded")
    told = details_of(record)
    assert (told["feed"], told["rows"], told["by"]) == ("orders", 30_000, "me")
    loading.commit("me", reading.told)
    assert seen() == ["care team"]
    empty = {"resourceType": "Bundle", "type": "searchset"}
    (tmp_path / "none.json").write_text(json.dumps(empty))
    load(client, tmp_path / "none.json", "care_team")
    assert seen() == []
    assert feeds.current(client)["care_team"].rows == 0
    assert {one.feed for one in feeds.loads(client)} == {"orders", "care_team"}


def test_rows_that_are_missing(client, tables, tmp_path):
    """A load whose rows did not all arrive is not committed; one whose rows a server does not have
    (yet) takes no one's place."""
    write(tmp_path, "orders", "subject,patient", [["n.1", f"p-{n}"] for n in range(10)])
    load(client, tmp_path)
    assert tables.newer().reasons
    loading = load(client, tmp_path)
    version = loading.versions["orders"]
    delete = f"DELETE FROM feed_reasons WHERE version = '{version}' AND patient = %(token)s"
    client.execute(delete, {"token": KEY.token("p-3")})
    assert not feeds.whole(client, feeds.current(client)["orders"])
    assert tables.newer() is None
    with pytest.raises(UnavailableError, match="orders: 9 of 10 rows"):
        loading.check()


def test_a_load_lapses(client, tables, tmp_path):
    """What nobody loads again is not believed for ever; its rows go, and those of others stay."""
    write(tmp_path, "orders", "subject,patient", [["n.1", "p-1"]])
    client.execute("SYSTEM STOP TTL MERGES feed_reasons")
    load(client, tmp_path, seconds=-3 * DAY)
    [lapsed] = feeds.loads(client)
    assert lapsed.lapsed
    assert feeds.current(client) == {}
    assert tables.newer() is None
    load(client, tmp_path)
    assert tables.newer().reasons
    client.execute("SYSTEM START TTL MERGES feed_reasons")
    client.execute("OPTIMIZE TABLE feed_reasons FINAL")
    kept = client.execute("SELECT DISTINCT version FROM feed_reasons")
    assert kept == [(feeds.current(client)["orders"].version,)]


def test_watch_takes_over_what_is_loaded(log, database, tmp_path):
    """A detector that runs goes by the newest load from its next look on, and keeps what it has
    learnt."""
    told = []
    options = config.load(None, {"data_dir": tmp_path / "watch", "store": database})
    tables = Tables(connect(database))
    watch = Watch(options, log.client, None, told.append)

    def asks(number):
        """Somebody looks at a chart now."""
        now = time.time_ns() // 1000
        record = access("n.gone", 0, 0, "p-1") | {"decision_id": f"d{number}", "time": now}
        log.append(log.written([record | {"kind": "decision"}]))
        log.seal()
        watch.look()

    _take(watch, tables)
    asks(1)
    assert told == []
    write(tmp_path, "people", "subject,status", [["n.gone", "terminated"]])
    load(log.client, tmp_path)
    _take(watch, tables)
    asks(2)
    assert [(one.rule, one.subject) for one in told] == [("terminated", "n.gone")]
    tables.close()
