"""Every tampering is found and placed, and nothing else is."""

import base64
import copy
import hashlib
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest
from hostile import hostile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logs import SIGNER, TRUST, TestLog

from authz.journal.chain import chain_hash, head_text, policy_notice
from authz.ledger import Checkpoint, Signer, sign_note, tree_hash
from authz.record import FIELDS, attachment_hash, canonical, form
from authz.store import rows
from authz.store.client import connect
from authz.store.logs import StoredLogs
from authz.trust import TrustedLog
from authz.verify import log as verify
from authz.verify import verify_store

BATCHES = (1, 255, 44, 300, 100)
SIZE = sum(BATCHES)
ORIGIN = SIGNER.name
TABLES = ("audit_log", "tiles", "checkpoints", "policies", "sealed_originals")
NOW = 1_700_000_000_000_000
CARRIED = {hashlib.sha256(text).hexdigest(): text for text in (b"0123abcd.sealed", b"package a")}
SEALED, REVISION = CARRIED


def exchange(number):
    """A decision and its access."""
    decision = {
        "kind": "decision",
        "time": NOW + number,
        "decision_id": f"d{number}",
        "subject": f"person {number}\\xff",
        "roles": ["physician"],
        "patients": [f"t{number}", "t"],
        "allowed": number % 3 > 0,
        "enforced": True,
        "status": 0 if number % 3 else 403,
    }
    access = decision | {"upstream": "10.0.0.1:80" if number % 3 else "", "bytes_out": number}
    return decision, access | {"kind": "access", "writer": "envoy:e"}


def written(log, records):
    """`records` as the writer's, with what they carry along."""
    entries = [(record, CARRIED.get(attachment_hash(record), b"")) for record in records]
    return [record for record, _ in log.written_entries(entries)]


def fill(log, spoil=None):
    """`SIZE` records of a writer with its signed heads, and of Envoy, in `BATCHES`. `spoil` does
    to the writer's records what a dishonest receiver could."""
    mine = [log.identity.start_notice(NOW, "1")]
    theirs, number = [], 0
    payloads = []
    while len(mine) + len(theirs) < SIZE:
        decision, access = exchange(number)
        mine.append(decision | ({"sealed": SEALED} if number in (50, 150) else {}))
        theirs.append(access)
        number += 1
        if number % 40 == 0:
            payloads += written(log, mine)
            # Others came in between: a head is seldom that of the record just before.
            seq, head = log.chain.place
            payloads += written(log, [policy_notice(NOW, REVISION)[0]])
            mine = [log.identity.head_notice(NOW, seq, head)]
            theirs = theirs[:-2]
            payloads += theirs
            theirs = []
            if len(payloads) > SIZE:
                break
    payloads += written(log, mine) + theirs
    if spoil:
        payloads = spoil(payloads)
    payloads = payloads[:SIZE]
    for size in BATCHES:
        group, payloads = payloads[:size], payloads[size:]
        for record in group:
            log.append_entries([(dict(record), CARRIED.get(attachment_hash(record), b""))])
        log.seal()


@pytest.fixture(scope="module")
def base(clickhouse, tmp_path_factory):
    """A database with an untouched log, and a second one to tamper with."""
    url = clickhouse.store.rpartition("/")[0]
    with connect(clickhouse.store) as admin:
        for name in ("verify_base", "verify_copy"):
            admin.execute(f"CREATE DATABASE {name}")
        log = TestLog(tmp_path_factory.mktemp("log"), f"{url}/verify_base")
        fill(log)
        log.writer_journal.close()
        log.close()
        other = TestLog(tmp_path_factory.mktemp("log"), f"{url}/verify_copy")
        other.writer_journal.close()
        other.close()
        yield f"{url}/verify_copy"
        for name in ("verify_base", "verify_copy"):
            admin.execute(f"DROP DATABASE {name}")


@pytest.fixture
def client(base, monkeypatch):
    """The copy, as it was."""
    monkeypatch.setattr(verify, "UNSEALED_SECONDS", 0.1)
    with connect(base, mutations_sync=1) as client:
        reset(client)
        yield client


def reset(client):
    for table in TABLES:
        client.execute(f"TRUNCATE TABLE {table}")
        client.execute(f"INSERT INTO {table} SELECT * FROM verify_base.{table}")


def found(client, state=None):
    """The findings as (kind, first, last)."""
    report = verify_store(client, TRUST, state)
    assert report.verified == (not report.findings)
    return [(finding.kind, finding.first, finding.last) for finding in report.findings]


def all_records(client):
    return list(rows.read(client, "audit_log", ORIGIN, 0, SIZE))


def put(client, records):
    rows.insert(client, [form(record) for record in records])


def replace(client, records):
    client.execute("TRUNCATE TABLE audit_log")
    put(client, records)


def update(client, change, where, table="audit_log", **values):
    client.execute(f"ALTER TABLE {table} UPDATE {change} WHERE {where}", values)


def tiles(client, level=0):
    return client.execute(
        "SELECT index, data FROM tiles FINAL WHERE level = %(level)s ORDER BY index",
        {"level": level},
        settings={"strings_as_bytes": True},
    )


def root_at(client, size):
    data = b"".join(data for _, data in tiles(client))
    return tree_hash([data[n * 32 : n * 32 + 32] for n in range(size)])


def checkpoint(client, size, root, signer=SIGNER):
    note = sign_note(Checkpoint(ORIGIN, size, root).text(), signer)
    client.execute("INSERT INTO checkpoints (origin, size, note) VALUES", [(ORIGIN, size, note)])


def test_untouched(client):
    """An untouched log is verified, its counts are told and its state is remembered."""
    state, progress = {}, []
    report = verify_store(client, TRUST, state, lambda done, total: progress.append((done, total)))
    assert report.findings == []
    assert report.verified
    assert report.records == SIZE
    assert progress[-1] == (SIZE, SIZE)
    [log] = report.logs
    assert (log.checkpoints, log.writers, log.doubles) == (len(BATCHES), 1, 0)
    assert log.root == base64.b64encode(root_at(client, SIZE)).decode()
    assert (state[ORIGIN]["size"], state[ORIGIN]["root"]) == (SIZE, log.root)
    assert report.matched > 200
    assert not set(report.gaps) - {"no_decision"}
    assert found(client, state) == []


@pytest.mark.parametrize(
    "change",
    [
        "subject = 'someone else'",
        "subject = concat(subject, ' ')",
        "subject = unhex('706572736F6EFF')",
        "kind = 'finding'",
        "roles = []",
        "roles = ['physician', '']",
        "patients = reverse(patients)",
        "allowed = NOT allowed",
        "enforced = false",
        "status = status + 1",
        "bytes_in = 1",
        "bytes_in = 18446744073709551615",
        "time = addMicroseconds(time, 1)",
        "time = toDateTime64('1950-01-01 00:00:00', 6, 'UTC')",
        "time = toDateTime64('2299-12-31 00:00:00', 6, 'UTC')",
        "writer_seq = 9007199254740993",
        "prev = ''",
        "details = '{}'",
    ],
)
def test_changed_value(client, change):
    """A changed value in a column of any type is told at its record."""
    [(index,)] = client.execute(
        "SELECT index FROM audit_log WHERE decision_id = 'd100' AND kind = 'decision'"
    )
    update(client, change, f"index = {index}")
    assert ("changed", index, index) in found(client)


def test_escaped_text_made_raw(client):
    r"""A byte in place of the escape (``\xff``) it was sealed as is another value."""
    update(client, "subject = concat(substring(subject, 1, length(subject) - 4), unhex('FF'))",
           "index = 100")  # fmt: skip
    assert ("changed", 100, 100) in found(client)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, SIZE - 1), st.sampled_from(FIELDS), st.randoms(use_true_random=False))
def test_any_changed_value(client, index, field, random):
    """Whichever value of whichever record is changed, it is told there."""
    if field.name in ("origin", "index"):
        return
    reset(client)
    records = all_records(client)
    value = hostile(random).get(field.name, {"text": "x", "texts": ["x"], "bool": True}.get(
        field.type, 77))  # fmt: skip
    if (records[index].get(field.name) or None) == (value or None):
        return
    records[index][field.name] = value
    replace(client, records)
    assert ("changed", index, index) in found(client)


def test_deleted_row(client):
    """A row that is gone is missing, at its place."""
    client.execute("ALTER TABLE audit_log DELETE WHERE index IN (300, 301, 303)")
    assert {("missing", 300, 301), ("missing", 303, 303)} <= set(found(client))


def test_deleted_first_row(client):
    """So it is at the very beginning."""
    client.execute("ALTER TABLE audit_log DELETE WHERE index = 0")
    assert ("missing", 0, 0) in found(client)


def test_all_rows_deleted(client):
    """A log whose rows are all gone is truncated from the first."""
    client.execute("TRUNCATE TABLE audit_log")
    assert ("truncated", 0, SIZE - 1) in found(client)


def test_truncated_tail(client):
    """Rows that are gone at the end are told as such, though nothing follows them."""
    client.execute("ALTER TABLE audit_log DELETE WHERE index >= 650")
    assert found(client) == [("truncated", 650, SIZE - 1)]


def test_doubled_row(client):
    """The same row twice is counted, and is no tampering."""
    put(client, all_records(client)[10:20])
    report = verify_store(client, TRUST)
    assert report.verified
    assert report.logs[0].doubles == 10


def test_conflicting_row(client):
    """A second record with the place of another is a conflict, whichever is read first."""
    record = all_records(client)[10] | {"subject": "0"}
    put(client, [record])
    assert ("conflict", 10, 10) in found(client)


def test_swapped_rows(client):
    """Two records that changed places are both told."""
    records = all_records(client)
    records[20]["index"], records[30]["index"] = 30, 20
    replace(client, records)
    assert {("changed", 20, 20), ("changed", 30, 30)} <= set(found(client))


def test_rollback(client):
    """Rows, tiles and checkpoints cut back together are a valid older log: the state tells."""
    state = {}
    assert found(client, state) == []
    client.execute("ALTER TABLE audit_log DELETE WHERE index >= 300")
    client.execute("ALTER TABLE checkpoints DELETE WHERE size > 300")
    client.execute("TRUNCATE TABLE tiles")
    client.execute(
        "INSERT INTO tiles SELECT * FROM verify_base.tiles WHERE level = 0 AND index = 0"
    )
    data = tiles_of_base(client, 1)[: 44 * 32]
    upper = tree_hash([tiles_of_base(client, 0)[n * 32 : n * 32 + 32] for n in range(256)])
    client.execute(
        "INSERT INTO tiles (origin, level, index, width, data) VALUES",
        [(ORIGIN, 0, 1, 44, data), (ORIGIN, 1, 0, 1, upper)],
    )
    accepted = copy.deepcopy(state)
    assert found(client, state) == [("rollback", 300, SIZE - 1)]
    assert state == accepted, "what was accepted is not forgotten"
    assert found(client) == []


def tiles_of_base(client, index):
    [(data,)] = client.execute(
        "SELECT data FROM verify_base.tiles WHERE level = 0 AND index = %(index)s"
        " ORDER BY width DESC LIMIT 1",
        {"index": index},
        settings={"strings_as_bytes": True},
    )
    return data


def test_state_of_another_history(client):
    """What was accepted before must be a part of what is there now, root by root."""
    wrong = base64.b64encode(bytes(32)).decode()
    assert ("fork", -1, -1) in found(client, {ORIGIN: {"size": SIZE, "root": wrong}})
    # No checkpoint of this size is left: the root is recomputed at it.
    assert "root" in {kind for kind, *_ in found(client, {ORIGIN: {"size": 123, "root": wrong}})}
    right = base64.b64encode(root_at(client, 123)).decode()
    assert found(client, {ORIGIN: {"size": 123, "root": right}}) == []


def test_no_checkpoint(client):
    """A trusted log without any checkpoint is not verified."""
    client.execute("TRUNCATE TABLE checkpoints")
    assert ("no_checkpoint", -1, -1) in found(client)


def test_empty_database(client):
    """Nor is one of which nothing is there at all."""
    for table in TABLES:
        client.execute(f"TRUNCATE TABLE {table}")
    assert found(client) == [("no_checkpoint", -1, -1)]


@pytest.mark.parametrize(
    "note",
    [
        "substring(note, 1, position(note, '\\n\\n') + 1)",
        "replaceOne(note, '\\n', ' \\n')",
        "concat(note, unhex('FF'))",
        "unhex('FFFE')",
        "''",
    ],
)
def test_spoilt_checkpoint(client, note):
    """A checkpoint without its signature, changed, or no text at all is told."""
    update(client, f"note = {note}", "size = 300", "checkpoints")
    assert found(client) == [("signature", -1, -1)]


def test_checkpoint_by_another_key(client):
    """A signature under the right name by a key that is not trusted is none."""
    client.execute("ALTER TABLE checkpoints DELETE WHERE size = 300")
    checkpoint(client, 300, root_at(client, 300), Signer(ORIGIN, bytes(32)))
    assert found(client) == [("other_key", -1, -1)]


def test_checkpoint_of_another_size(client):
    """A checkpoint filed under another size is told."""
    client.execute(
        "INSERT INTO checkpoints (origin, size, note)"
        " SELECT origin, 301, note FROM checkpoints WHERE size = 300"
    )
    assert found(client) == [("signature", -1, -1)]


def test_fork(client):
    """Two roots signed for one size are a fork."""
    checkpoint(client, 300, bytes(32))
    assert ("fork", -1, -1) in found(client)


def test_fork_and_tile(client):
    """A wrong root between does not hide from verification what else is wrong."""
    first = base64.b64decode("+" * 42 + "8=")  # in the order of notes, before any other
    checkpoint(client, 300, first)
    data = dict(tiles(client))[0]
    client.execute("ALTER TABLE tiles DELETE WHERE level = 0 AND index = 0")
    client.execute(
        "INSERT INTO tiles (origin, level, index, width, data) VALUES",
        [(ORIGIN, 0, 0, 256, data[:320] + bytes(32) + data[352:])],
    )
    kinds = {kind for kind, *_ in found(client)}
    assert {"fork", "root", "tiles"} <= kinds


def test_checkpoint_repeated(client):
    """The same checkpoint twice is harmless."""
    client.execute("INSERT INTO checkpoints SELECT * FROM checkpoints")
    assert found(client) == []


@pytest.mark.parametrize(("level", "index"), [(0, 0), (0, 1), (0, 2), (1, 0)])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_tile(client, level, index, how):
    """A tile that was changed or is gone is told as that, since the records are what was signed."""
    if how == "changed":
        data = dict(tiles(client, level))[index]
        wrong = bytes([data[0] ^ 1]) + data[1:]
        client.execute(
            "INSERT INTO tiles (origin, level, index, width, data) VALUES",
            [(ORIGIN, level, index, len(data) // 32, wrong)],
        )
        client.execute(
            f"ALTER TABLE tiles DELETE WHERE level = {level} AND index = {index}"
            f" AND hex(substring(data, 1, 1)) != '{wrong[0]:02X}'"
        )
    else:
        client.execute(f"ALTER TABLE tiles DELETE WHERE level = {level} AND index = {index}")
    [(kind, first, last)] = found(client)
    assert kind == "tiles"
    width = 256 ** (level + 1)
    assert index * width <= first <= last < min((index + 1) * width, SIZE)
    if (level, how) == (0, "changed"):
        assert first == last == index * width


def test_tiles_ahead_of_the_checkpoint(client):
    """Tiles that a receiver at work has grown since are no tampering."""
    [(_, data)] = tiles(client, 1)
    client.execute(
        "INSERT INTO tiles (origin, level, index, width, data) VALUES",
        [(ORIGIN, 1, 0, 3, data + bytes(32)), (ORIGIN, 2, 0, 1, bytes(32))],
    )
    assert found(client) == []


def test_rows_and_tiles_changed(client):
    """Whoever rewrites the tiles too is caught by the signed root; the batch is named."""
    update(client, "subject = 'someone else'", "index = 400")
    forge_tiles(client)
    assert ("root", 300, 599) in found(client)


def forge_tiles(client):
    """The tiles that belong to the rows as they are now."""
    from authz.ledger import Tree, leaf_hash

    tree = Tree()
    forged = tree.append(leaf_hash(canonical(record)) for record in all_records(client))
    client.execute("TRUNCATE TABLE tiles")
    client.execute(
        "INSERT INTO tiles (origin, level, index, width, data) VALUES",
        [
            (ORIGIN, tile.level, tile.index, len(tile.hashes), tile.data)
            for tile in (*forged, *tree.partial_tiles())
        ],
    )


@pytest.mark.parametrize("index", [SIZE, SIZE + 5, 2**53, 2**64 - 1])
def test_unsealed_rows(client, index):
    """Rows beyond the newest checkpoint that stay uncovered are told."""
    put(client, [{"origin": ORIGIN, "index": index, "kind": "decision"}])
    assert found(client) == [("unsealed", index, index)]


def test_rows_sealed_meanwhile(client):
    """Rows that are covered while verification runs are a receiver at work."""
    put(client, [{"origin": ORIGIN, "index": SIZE, "kind": "decision"}])
    check = verify.LogCheck(StoredLogs(client), TRUST[0], 256, verify.Astray())
    assert check.begin() == SIZE
    with ThreadPoolExecutor(1) as ahead:
        for part in check.parts(ahead):
            assert list(check.records(part))
    checkpoint(client, SIZE + 1, bytes(32))
    check.finish()
    assert check.report.findings == []


@pytest.mark.parametrize("origin", ["elsewhere", "", "'; --", "\N{SNOWMAN}"])
def test_unknown_origin(client, origin):
    """Rows of a log that nobody trusts are told with their range."""
    put(client, [{"origin": origin, "index": index} for index in (3, 9)])
    assert found(client) == [("unknown_origin", 3, 9)]


def test_origin_that_is_no_text(client):
    """Also if its name is not even text."""
    client.execute("INSERT INTO audit_log (origin, index) SELECT unhex('FF'), 4")
    assert found(client) == [("unknown_origin", 4, 4)]


def test_two_logs(client):
    """Each log is checked by its own key: one that is spoilt does not spoil the other."""
    other = Signer("other/receiver", bytes(32))
    trust = [*TRUST, TrustedLog(other.name, (other.verifier,))]
    report = verify_store(client, trust)
    assert [(f.kind, f.origin) for f in report.findings] == [("no_checkpoint", other.name)]
    assert report.logs[0].findings == []


# What a dishonest receiver could do before it seals: rows, tiles and roots all agree.


@pytest.fixture
def sealed(database, tmp_path, monkeypatch):
    """Builds a log of records that `spoil` changed before sealing; returns its findings."""
    monkeypatch.setattr(verify, "UNSEALED_SECONDS", 0.1)

    def build(spoil):
        log = TestLog(tmp_path, database)
        fill(log, spoil)
        log.writer_journal.close()
        with connect(database) as client:
            log.close()
            return found(client)

    return build


def by_writer(records, seq):
    return next(n for n, record in enumerate(records) if record.get("writer_seq") == seq)


def rechained(records, key=None):
    """The writer's numbers and hashes made to fit again, as anyone can; with `key`, signed anew."""
    seq, prev, heads, old = 0, "", {}, {}
    for record in records:
        if "writer_seq" in record:
            seq += 1
            old[record["writer_seq"]] = seq
            if record.get("event") == "chain_head" and key:
                details = orjson.loads(record["details"])
                signed = old[details["seq"]]
                text = head_text(record["writer"], signed, heads[signed])
                signature = base64.b64encode(key.sign(text)).decode()
                details = {"seq": signed, "head": heads[signed], "signature": signature}
                record["details"] = orjson.dumps(details).decode()
            record |= {"writer_seq": seq, "prev": prev}
            heads[seq] = prev = chain_hash(canonical(record))
    return records


def test_dropped_before_sealing(sealed):
    """A writer's record that never reached the log leaves a hole in its sequence."""

    def drop(records):
        place = by_writer(records, 50)
        return [*records[:place], *records[place + 1 :]]

    assert "sequence" in {kind for kind, *_ in sealed(drop)}


def test_changed_before_sealing(sealed):
    """A writer's record changed before sealing does not fit the one after it."""

    def change(records):
        records[by_writer(records, 50)]["subject"] = "someone else"
        return records

    assert "chain" in {kind for kind, *_ in sealed(change)}


@pytest.mark.parametrize("what", ["drop", "change", "invent", "swap"])
def test_signed_heads(sealed, what):
    """Whoever also makes the chain fit again is told by the writer's signed heads, though other
    records stand between a head and the record it vouches for."""

    def spoil(records):
        place = by_writer(records, 20)
        record = records[place]
        if what == "drop":
            del records[place]
        elif what == "change":
            record["subject"] = "someone else"
        elif what == "invent":
            records.insert(place, dict(record))
        else:
            records[place], records[place + 1] = records[place + 1], records[place]
        return rechained(records)

    assert "chain_head" in {kind for kind, *_ in sealed(spoil)}


def test_heads_by_another_key(sealed):
    """Heads signed by any other key than the one announced are worth nothing."""

    def spoil(records):
        records[by_writer(records, 20)]["subject"] = "someone else"
        return rechained(records, Signer("x", bytes(32)))

    assert "chain_head" in {kind for kind, *_ in sealed(spoil)}


def test_second_key(sealed):
    """A writer that announces another key than before is told."""

    def spoil(records):
        again = dict(records[by_writer(records, 1)])
        key = base64.b64encode(bytes(32)).decode()
        again["details"] = orjson.dumps({"public_key": key}).decode()
        place = by_writer(records, 20)
        return rechained([*records[:place], again, *records[place:]])

    assert "writer_key" in {kind for kind, *_ in sealed(spoil)}


@pytest.mark.parametrize(
    "details",
    [
        "", "[]", "{}", '{"public_key": 5}', '{"public_key": "AAAA"}', '{"public_key": "!"}',
        '{"seq": "x", "head": 5, "signature": ""}', '{"seq": [], "head": {}, "signature": "AA=="}',
        '{"seq": 1e99, "head": "", "signature": 7}', "\x00",
    ],
)  # fmt: skip
@pytest.mark.parametrize("seq", [1, 43])
def test_malformed_notices(client, details, seq):
    """A notice that says nothing sensible is a finding, and never ends the verification."""
    update(client, "details = %(details)s", f"writer_seq = {seq}", details=details)
    assert found(client)


def test_bound_on_findings(client):
    """A log with everything wrong is told with its worst hundred, and how many there are."""
    update(client, "subject = 'x'", "1")
    report = verify_store(client, TRUST)
    [log] = report.logs
    assert len(log.findings) == 100
    assert log.more_findings > 500


def sealed_at_index(client):
    rows = client.execute("SELECT index, sealed FROM audit_log WHERE sealed != '' ORDER BY index")
    assert [sealed for _, sealed in rows] == [SEALED] * 2
    assert client.execute("SELECT index FROM sealed_originals ORDER BY index") == [
        (index,) for index, _ in rows
    ]
    return rows[1][0]


def test_changed_sealed_input(client):
    """A sealed input that is not the one its record names is told at that record, and no other."""
    index = sealed_at_index(client)
    update(client, "ciphertext = concat(ciphertext, 'x')", f"index = {index}", "sealed_originals")
    assert found(client) == [("sealed_original", index, index)]


@pytest.mark.parametrize(("index", "decision_id"), [("7", "''"), ("index", "'d1'")])
def test_invented_sealed_input(client, index, decision_id):
    """So is one put beside a record that names none, or filed under another decision."""
    place = sealed_at_index(client)
    client.execute(
        "INSERT INTO sealed_originals (origin, index, decision_id, sealed_at, ciphertext)"
        f" SELECT origin, {index}, {decision_id}, sealed_at, ciphertext FROM sealed_originals"
        f" WHERE index = {place}"
    )
    place = place if index == "index" else 7
    assert found(client) == [("sealed_original", place, place)]


@pytest.mark.parametrize("table", ["sealed_originals", "policies"])
def test_expired_attachments(client, table):
    """What retention took is no finding; what is there twice, after a crash, is none either."""
    client.execute(f"INSERT INTO {table} SELECT * FROM {table}")
    assert found(client) == []
    client.execute(f"TRUNCATE TABLE {table}")
    assert found(client) == []


def test_changed_policy_text(client):
    """An archived policy that is not its revision's text is told at the first record with it."""
    update(client, "text = 'package b'", "1", "policies")
    [(index,)] = client.execute("SELECT min(index) FROM audit_log WHERE policy_revision != ''")
    assert found(client) == [("policy_text", index, index)]
