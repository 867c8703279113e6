"""What expires on a real ClickHouse: what goes, what stays, and that all of it can be proved."""

from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logs import SIGNER
from old_logs import (
    NOW,
    PATIENTS,
    TIMES,
    Clock,
    OldLog,
    Silent,
    apply,
    checked,
    hashes,
    left,
    order,
    records,
    size_of,
    us,
)

from authz.cli import expire as expire_module
from authz.ledger import Signer
from authz.record import canonical
from authz.retention import KEPT_EVENTS, Hold, Rule, hold_notice, holds_in_force, release_notice
from authz.store import retention as store
from authz.store import rows
from authz.store.client import QUERY_ERRORS, connect
from authz.verify.provable import NotProvableError

KEYS = {SIGNER.name: (SIGNER.verifier,)}
OTHER = Signer("test/other", bytes(32))


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def log_of(tmp_path, database, clock):
    """Makes logs, and closes them."""
    made = []

    def make(signer=SIGNER, *, fresh=False, **more):
        directory = tmp_path / f"{signer.name.replace('/', '-')}-{len(made)}"
        directory.mkdir()
        if fresh and made:
            for table in ("audit_log", "sealed_originals", "tiles", "checkpoints"):
                made[-1].client.execute(f"TRUNCATE TABLE {table}")
        log = OldLog(directory, database, clock, signer)
        made.append(log)
        log.client.settings["mutations_sync"] = 1
        log.fill(**more)
        return log

    yield make
    for log in made:
        log.end()


@pytest.fixture
def log(log_of):
    return log_of()


def before(client, at):
    """The records that were sealed before then, by index."""
    return {r.get("index", 0): r for r in records(client) if r["sealed_at"] < at}


def kept_always(old):
    """Of those that are old enough: the very first, the newest, and a writer's first notice."""
    keys = {index for index, one in old.items() if one.get("event") == "writer_started"}
    return {0, max(old)} | keys


def test_what_is_old_goes(log):
    """Rows that are older than the rule go, by month; hashes, checkpoints and aggregates stay, and
    the notice tells just what is gone, under which root."""
    client = log.client
    old, was, proofs = before(client, us(2020, 11, 1)), left(client), hashes(client)
    signed = set(client.execute("SELECT size, note FROM checkpoints"))
    aggregates = client.execute("SELECT * FROM activity_hourly FINAL ORDER BY ALL")
    outcome = apply(log, order(keys=KEYS))
    assert left(client) == was - (set(old) - kept_always(old)) | {size_of(client) - 1}
    assert client.execute("SELECT * FROM activity_hourly FINAL ORDER BY ALL") == aggregates
    assert hashes(client)[: len(proofs)] == proofs
    assert signed < set(client.execute("SELECT size, note FROM checkpoints"))
    assert outcome.months == [201903, 202010]
    [part] = outcome.logs
    assert (part.origin, part.dropped) == (SIGNER.name, len(old) - 2)
    assert (part.kept, part.end) == (1, max(old))
    expiries = checked(client)
    assert len(expiries.absent(SIGNER.name)) == part.dropped
    [told] = expiries.ranges(SIGNER.name)
    assert (told.range.first, told.range.end) == (0, max(old))
    assert told.place == (SIGNER.name, outcome.notice_index)
    assert client.execute("SHOW TABLES LIKE 'expiring%'") == []


def test_nothing_to_drop(log):
    """A second run tells nothing and drops nothing; so does one whose rule reaches nothing."""
    apply(log)
    was, size = left(log.client), size_of(log.client)
    assert apply(log).nothing
    assert apply(log, order(Rule(years=20))).nothing
    assert (left(log.client), size_of(log.client)) == (was, size)


def test_only_said(log):
    """A dry run says what would go, and changes and tells nothing."""
    was, size = left(log.client), size_of(log.client)
    outcome = expire_module.expire(log.client, order(), None, Silent())
    assert outcome.logs[0].dropped > 100
    assert outcome.notice is None
    assert (left(log.client), size_of(log.client)) == (was, size)
    assert log.client.execute("SHOW TABLES LIKE 'expiring%'") == []


@pytest.mark.thorough
def test_month_after_month(log):
    """Each run tells what has expired since the one before, and the record that showed how old the
    last part was goes with the next."""
    client, proofs = log.client, hashes(log.client)
    for now in (NOW, us(2026, 12, 25), us(2028, 3, 1)):
        old = before(client, order(now=now).before_us)
        apply(log, now=now)
        assert left(client) & set(range(max(old))) == kept_always(old) - {max(old)}
        checked(client)
    assert hashes(client)[: len(proofs)] == proofs
    told = checked(client).ranges(SIGNER.name)
    assert [one.range.first for one in told] == [0, *(one.range.end for one in told[:-1])]
    apply(log, now=us(2100, 1, 1))
    stay = [record.get("event") for record in records(client)][1:]
    assert stay == ["expired"] * 4, "the last record of a log at rest stays: it is a notice"
    checked(client)


HOLDS = {
    "subject": Hold("hold-1", "case", "officer", subject="dr.elm"),
    "patients": Hold("hold-2", "case", "officer", patients=("k.none", PATIENTS[1])),
    "window": Hold("hold-3", "case", "officer", since_us=TIMES[0], until_us=TIMES[0] + 300_000_000),
}


def held(old, hold):
    """The requests one of whose records `hold` names, with all their records."""

    def named(one):
        if hold.subject:
            return one.get("subject") == hold.subject
        if hold.patients:
            return not set(hold.patients).isdisjoint(one.get("patients", ()))
        return any(hold.since_us <= one[name] < hold.until_us for name in ("time", "sealed_at"))

    ids = {one["decision_id"] for one in old.values() if named(one) and "decision_id" in one}
    return {i for i, one in old.items() if named(one) or one.get("decision_id") in ids}


@pytest.mark.parametrize("name", HOLDS)
def test_holds(log, name):
    """What a hold names stays, with all records of its requests and their sealed inputs, and can be
    verified; once it is lifted it goes like the rest."""
    client, hold = log.client, HOLDS[name]
    old = before(client, us(2020, 11, 1))
    stay = held(old, hold)
    assert 10 < len(stay) < len(old) - 10
    kinds = {"decision", "access", "disclosure"}
    assert kinds <= {old[index]["kind"] for index in stay}
    log.tell(hold_notice(hold, NOW))
    outcome = apply(log)
    assert outcome.holds[0].id == hold.id
    assert left(client) & set(old) == stay | kept_always(old)
    checked(client)
    inputs = {old[index]["decision_id"] for index in stay if old[index].get("sealed")}
    found = client.execute(
        "SELECT decision_id FROM sealed_originals WHERE sealed_at < '2020-11-01'"
    )
    assert {one for (one,) in found} == inputs != set()
    assert outcome.sealed_kept == len(inputs)
    log.tell(release_notice(hold.id, "over", "officer", NOW))
    assert apply(log).holds == []
    assert left(client) & set(old) == kept_always(old)
    checked(client)
    assert apply(log).nothing
    found = client.execute("SELECT count() FROM sealed_originals WHERE sealed_at < '2020-11-01'")
    assert found == [(0,)]


@pytest.mark.thorough
def test_several_holds(log):
    """Of two holds on the same record, each keeps it; and holds do not expire themselves."""
    client = log.client
    log.tell(hold_notice(HOLDS["subject"], NOW), hold_notice(HOLDS["patients"], NOW))
    old = before(client, us(2020, 11, 1))
    subject, patients = held(old, HOLDS["subject"]), held(old, HOLDS["patients"])
    assert subject & patients
    apply(log)
    assert left(client) & set(old) == subject | patients | kept_always(old)
    log.tell(release_notice("hold-1", "over", "officer", NOW))
    apply(log)
    assert left(client) & set(old) == patients | kept_always(old)
    apply(log, now=us(2100, 1, 1))
    assert [hold.id for hold in holds_in_force(store.read_notices(client))] == ["hold-2"]
    assert left(client) & set(old) >= patients
    checked(client)


@pytest.mark.thorough
def test_a_hold_in_the_same_second(log):
    """A hold that reaches the log between the look at the holds and the notice is kept to, and the
    notice that did not know it excuses nothing."""
    client = log.client
    stay = held(before(client, us(2020, 11, 1)), HOLDS["subject"])
    told = []

    def tell(expiries):
        if not told:
            log.tell(hold_notice(HOLDS["subject"], NOW))
        told.append(expiries)
        return log.told()(expiries)

    apply(log, tell=tell)
    assert len(told) == 2
    assert stay <= left(client)
    expiries = checked(client)
    assert not any(index in expiries.absent(SIGNER.name) for index in stay)
    assert len(expiries.ranges(SIGNER.name)) == 1


OPERATIONS = st.one_of(
    st.sampled_from([*HOLDS]),
    st.tuples(st.just("release"), st.sampled_from([*HOLDS])),
    st.tuples(st.just("months"), st.integers(0, 30)),
    st.just("crash"),
)


@pytest.mark.thorough
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OPERATIONS, max_size=8))
def test_whatever_comes(log_of, operations):
    """Whatever is held and released between runs, years apart or cut off: after each run just that
    is there which was there before and is too young, held, or kept always; all of it verifies."""
    log = log_of(each=8, times=[*TIMES, us(2026, 11, 22)], fresh=True)
    client, was, now, crash = log.client, {}, NOW, False
    in_force = set()
    for operation in [*operations, ("months", 1)]:
        if operation in HOLDS:
            in_force.add(operation)
            log.tell(hold_notice(HOLDS[operation], now), at=now)
        elif operation == "crash":
            crash = True
        elif operation[0] == "release":
            if operation[1] in in_force:
                in_force.remove(operation[1])
                hold = HOLDS[operation[1]]
                log.tell(release_notice(hold.id, "over", "officer", now), at=now)
        else:
            now += operation[1] * 30 * 86_400_000_000
            was |= {record.get("index", 0): record for record in records(client)}
            bound = order(now=now).before_us
            old = {i: was[i] for i in left(client) if was[i]["sealed_at"] < bound}
            stay = {i for i, one in old.items() if one.get("event") in KEPT_EVENTS}
            stay |= {0, max(old)} & set(old)
            for name in in_force:
                stay |= held(old, HOLDS[name])
            if crash:
                with suppress(CrashError), pytest.MonkeyPatch.context() as patch:
                    patch.setattr(store.Kept, "replace", _crash)
                    assert apply(log, now=now).nothing
                crash = False
                checked(client)
            apply(log, now=now)
            assert left(client) & set(old) == stay
            assert left(client) >= {i for i, one in was.items() if one["sealed_at"] >= bound}
            checked(client)


def _crash(*_):
    raise CrashError


class CrashError(Exception):
    """As if the process had ended there."""


@pytest.mark.thorough
@pytest.mark.parametrize("point", ["staged", "told", "seen", "inputs", "one month", "all"])
def test_a_crash_at_any_point(log, monkeypatch, point):
    """Wherever a run is cut off, what is gone may be, and what is held is there; the next run ends
    as if nothing had happened, and what was set aside is cleared away in time."""
    client = log.client
    log.tell(hold_notice(HOLDS["subject"], NOW))
    old = before(client, us(2020, 11, 1))
    end = left(client) & set(old) & (held(old, HOLDS["subject"]) | kept_always(old))
    replaced = []
    plain = store.Kept.replace

    def replace(self, month):
        if point == "seen" or (point == "one month" and (store.RECORDS, 1) in replaced):
            raise CrashError
        if point == "inputs" and self.table == store.RECORDS:
            raise CrashError
        plain(self, month)
        replaced.append((self.table, len([t for t, _ in replaced if t == self.table]) + 1))
        if point == "all" and len(replaced) == 4:
            raise CrashError

    def tell(expiries):
        if point == "staged":
            raise CrashError
        log.told()(expiries)
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(store.Kept, "replace", replace)
        patch.setattr(store.Kept, "end", lambda _: None)
        with pytest.raises(CrashError):
            apply(log, tell=tell if point in ("staged", "told") else None)
    checked(client)
    was = left(client) & set(old)
    assert (was == set(old)) == (point not in ("one month", "all"))
    assert was >= end
    assert len(client.execute("SHOW TABLES LIKE 'expiring%'")) == 2
    apply(log)
    assert left(client) & set(old) == end
    checked(client)
    assert apply(log).nothing
    monkeypatch.setattr(store, "_LEFT_SECONDS", -10)
    assert apply(log).nothing
    assert client.execute("SHOW TABLES LIKE 'expiring%'") == []


ANOTHER_ROOT = (
    "checkpoints UPDATE note = replaceRegexpOne(note, '\\n[^\\n]{44}\\n',"
    " '\\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\\n') WHERE 1"
)
TABLES = ("audit_log", "tiles", "checkpoints")


@pytest.fixture(scope="module")
def long_log(clickhouse, tmp_path_factory):
    """A log that needs a second tile, to be spoiled, and tables with what it was."""
    with connect(clickhouse.store) as admin, pytest.MonkeyPatch.context() as patch:
        admin.execute("CREATE DATABASE spoiled")
        url = clickhouse.store.rpartition("/")[0] + "/spoiled"
        log = OldLog(tmp_path_factory.mktemp("log"), url, Clock(patch))
        log.client.settings["mutations_sync"] = 1
        log.fill(each=60)
        for table in TABLES:
            log.client.execute(f"CREATE TABLE was_{table} AS {table}")
            log.client.execute(f"INSERT INTO was_{table} SELECT * FROM {table}")
        yield log
        log.end()
        admin.execute("DROP DATABASE spoiled")


def alter(client, change):
    client.execute(f"ALTER TABLE {change}")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("audit_log UPDATE subject = 'x' WHERE index = 50", "record 50 is not what was sealed"),
        ("audit_log DELETE WHERE index IN (50, 51)", "record 50 is missing"),
        ("audit_log DELETE WHERE index = 0", "record 0 is missing"),
        ("tiles DELETE WHERE level = 0 AND index = 0", "its tiles lack the hash of record 0"),
        ("tiles DELETE WHERE level = 0 AND index = 1", "its tiles lack the hash of record 256"),
        ("tiles DELETE WHERE level = 1", "tile 0 of level 1 is another, or gone"),
        (
            "tiles UPDATE data = concat(unhex('00'), substring(data, 2)) WHERE level = 1",
            "tile 0 of level 1 is another",
        ),
        ("checkpoints DELETE WHERE 1", "no checkpoint covers its first 363 records"),
        ("checkpoints UPDATE note = concat('x', note) WHERE 1", "the checkpoint of size"),
        (ANOTHER_ROOT, "its tiles do not lead to the root"),
        (
            "audit_log UPDATE time = addYears(time, 1) WHERE index = 362",
            "record 362 is not what was sealed",
        ),
    ],
)  # fmt: skip
def test_refusals(long_log, change, text):
    """What could not be proved later is not dropped, and it is said where that is: with the trust
    file or without."""
    log = long_log
    for table in TABLES:
        log.client.execute(f"TRUNCATE TABLE {table}")
        log.client.execute(f"INSERT INTO {table} SELECT * FROM was_{table}")
    alter(log.client, change)
    was, size = left(log.client), log.log.sealed.size
    keys = (None,) if change == ANOTHER_ROOT else (None, KEYS)
    for one in keys:
        with pytest.raises(NotProvableError, match=text) as error:
            apply(log, order(keys=one))
    assert error.value.exit_code == 1
    assert (left(log.client), log.log.sealed.size) == (was, size), "nothing is told either"
    assert log.client.execute("SHOW TABLES LIKE 'expiring%'") == []


def test_a_signature_that_is_not_trusted(log):
    """With the trust file, the checkpoint must bear a signature it accepts, and each log that has
    old records must be named."""
    with pytest.raises(NotProvableError, match="no signature by a trusted key"):
        apply(log, order(keys={SIGNER.name: (OTHER.verifier,)}))
    with pytest.raises(NotProvableError, match="the trust file does not name it"):
        apply(log, order(keys={OTHER.name: (OTHER.verifier,)}))


def test_what_was_kept_and_is_gone(log):
    """A held record that somebody deleted since is missing for the next run, and no notice of ours
    ever excuses it."""
    log.tell(hold_notice(HOLDS["subject"], NOW))
    stay = held(before(log.client, us(2020, 11, 1)), HOLDS["subject"])
    apply(log)
    gone = min(stay - {0, 1})
    alter(log.client, f"audit_log DELETE WHERE index = {gone}")
    with pytest.raises(NotProvableError, match=f"record {gone} is missing"):
        apply(log, now=us(2026, 12, 25))
    with pytest.raises(AssertionError):
        checked(log.client)


@pytest.mark.thorough
def test_a_notice_that_somebody_wrote(log):
    """A release that is no record of the log lifts nothing: a run that meets one drops nothing."""
    log.tell(hold_notice(HOLDS["subject"], NOW))
    told = log.tell(release_notice("hold-9", "over", "officer", NOW))
    alter(log.client, "audit_log UPDATE details = replaceOne(details, 'hold-9', 'hold-1')"
          f" WHERE index = {told.end - 1}")  # fmt: skip
    with pytest.raises(NotProvableError, match=f"notice {told.end - 1} is not what was sealed"):
        apply(log)


def test_sealed_inputs(log):
    """Sealed inputs expire by a rule of their own, and the notice says which; their records stay,
    and nothing is missing of the log."""
    client = log.client
    was = left(client)
    asked = order(Rule(years=20), sealed=Rule(days=90))
    outcome = apply(log, asked)
    assert (outcome.months, outcome.logs, outcome.sealed_kept) == ([], [], 0)
    assert outcome.sealed_months == [201903, 202010, 202011, 202201]
    assert left(client) == was | {size_of(client) - 1}
    found = client.execute("SELECT min(toYYYYMM(sealed_at)), count() FROM sealed_originals")
    assert found == [(202611, 4)]
    [told] = checked(client).told()
    assert (told.sealed_rule, told.sealed_before_us) == ("90d", us(2026, 8, 1))
    assert told.ranges == ()
    assert apply(log, asked).nothing


@pytest.mark.thorough
def test_several_logs(log_of):
    """One notice, in one log, tells of all of them."""
    log, other = log_of(), log_of(OTHER, each=7)
    outcome = apply(log)
    assert [one.origin for one in outcome.logs] == [OTHER.name, SIGNER.name]
    expiries = checked(log.client, SIGNER.name, OTHER.name)
    [one] = expiries.ranges(OTHER.name)
    assert one.place[0] == SIGNER.name
    assert 0 < len(expiries.absent(OTHER.name)) < len(expiries.absent(SIGNER.name))
    other.tell(hold_notice(HOLDS["subject"], NOW))
    assert [hold.id for hold in apply(log, now=us(2026, 12, 25)).holds] == ["hold-1"]
    checked(log.client, SIGNER.name, OTHER.name)


@pytest.mark.thorough
def test_many_spans(log, monkeypatch):
    """What is too much for one notice is told in several, which follow each other."""
    monkeypatch.setattr(expire_module, "_SPANS_CAP", 30)
    monkeypatch.setattr(expire_module, "_NOTICE_CAP", 450)
    log.tell(hold_notice(HOLDS["subject"], NOW))
    stay = held(before(log.client, us(2020, 11, 1)), HOLDS["subject"])
    apply(log)
    expiries = checked(log.client)
    told = expiries.ranges(SIGNER.name)
    assert len({one.place for one in told}) > 1
    assert [one.range.first for one in told] == [0, *(one.range.end for one in told[:-1])]
    assert stay <= left(log.client)


@pytest.mark.thorough
def test_rows_that_come_in_meanwhile(log, monkeypatch):
    """A month into which rows have come since it was looked at is not dropped."""
    old = before(log.client, us(2020, 11, 1))

    def tell(expiries):
        told = log.told()(expiries)
        log.client.execute(
            "INSERT INTO audit_log SELECT * FROM audit_log WHERE index = %(index)s",
            {"index": max(old)},
        )
        return told

    with pytest.raises(expire_module.UnavailableError, match="rows of 202010 have come or gone"):
        apply(log, tell=tell)
    checked(log.client)
    apply(log)
    assert left(log.client) & set(old) == kept_always(old)


def test_order_of_times(log):
    """A log whose later records claim to be older is not touched."""
    young = before(log.client, us(2020, 11, 1))[100] | {"sealed_at": us(2021, 5, 1)}
    alter(log.client, "audit_log DELETE WHERE index = 100")
    rows.insert(log.client, [canonical(young)])
    with pytest.raises(NotProvableError, match="not in the order of their times"):
        apply(log)


@pytest.mark.thorough
def test_an_operators_own_index(log):
    """A projection or index that an operator has added is no obstacle."""
    alter(log.client, "audit_log ADD PROJECTION people (SELECT subject, count() GROUP BY subject)")
    alter(log.client, "audit_log ADD INDEX by_host host TYPE bloom_filter(0.01)")
    apply(log)
    checked(log.client)


def test_the_database_is_read_only(log, database):
    """A user without the rights is told so, and nothing has happened."""
    was = left(log.client)
    with connect(database, readonly=2) as client, pytest.raises(QUERY_ERRORS, match="readonly"):
        apply(log, client=client)
    assert left(log.client) == was
