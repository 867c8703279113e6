"""Every tampering with rows is found and placed."""

import itertools

import pytest
from hostile import hostile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logs import TRUST
from pages import block
from verified import (
    ORIGIN,
    SEALED,
    SIZE,
    SIZES,
    all_records,
    findings,
    forge_tiles,
    found,
    put,
    replace,
    reset,
    update,
)  # fmt: skip

from authz.ledger import leaf_hash
from authz.record import FIELDS
from authz.store import rows
from authz.verify import log as verify
from authz.verify import logs, verify_store


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
def test_changed_value(copied, change):
    """A changed value in a column of any type is told at its record."""
    [(index,)] = copied.execute(
        "SELECT index FROM audit_log WHERE decision_id = 'd100' AND kind = 'decision'"
    )
    update(copied, change, f"index = {index}")
    assert ("changed", index, index) in found(copied)


def test_escaped_text_made_raw(copied):
    r"""A byte in place of the escape (``\xff``) it was sealed as is another value."""
    update(copied, "subject = concat(substring(subject, 1, length(subject) - 4), unhex('FF'))",
           "index = 100")  # fmt: skip
    assert ("changed", 100, 100) in found(copied)


def change_of(field):
    """SQL for another value of a column."""
    return {
        "text": f"concat(`{field.name}`, 'x')",
        "texts": f"arrayPushBack(`{field.name}`, 'x')",
        "bool": f"NOT `{field.name}`",
        "int": f"`{field.name}` + 1",
        "time": f"addMicroseconds(`{field.name}`, 1)",
    }[field.type]


KEYS = ("origin", "index", "sealed_at")  # which ClickHouse lets nobody update


def rewrite(client, index, column, value):
    """A row with another value in a column that cannot be updated."""
    client.execute(f"ALTER TABLE audit_log DELETE WHERE index = {index}")
    client.execute(
        f"INSERT INTO audit_log SELECT * REPLACE ({value} AS `{column}`)"
        f" FROM (SELECT * FROM verify_base.audit_log WHERE index = {index})"
    )


@pytest.mark.thorough
@pytest.mark.parametrize("field", FIELDS, ids=[field.name for field in FIELDS])
def test_each_column(copied, field):
    """A changed value is told at its record, whichever column it is in, and nothing else is: not
    what would follow from it for the records after it."""
    if field.name not in KEYS:
        update(copied, f"`{field.name}` = {change_of(field)}", "index = 100")
    else:
        rewrite(copied, 100, field.name, "700" if field.name == "index" else change_of(field))
    there = {
        "origin": [("missing", 100, 100), ("moved", 100, 100), ("unknown_origin", 100, 100)],
        "index": [
            ("missing", 100, 100), ("reordered", 100, 100), ("replayed", 700, 700),
            ("unsealed", 700, 700),
        ],
    }  # fmt: skip
    assert sorted(found(copied)) == there.get(field.name, [("changed", 100, 100)])


@pytest.mark.thorough
@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_any_mixture(copied, monkeypatch, data):
    """Whatever is done to whichever records, each is told at its place, and nothing else."""
    reset(copied)
    monkeypatch.setattr(logs, "_CHUNK", data.draw(st.sampled_from((256, 512, 1 << 14)), "chunk"))
    records = all_records(copied)
    touched = data.draw(st.lists(st.integers(0, SIZE - 1), max_size=40, unique=True), "touched")
    what = st.sampled_from(("gone", "changed", "doubled", "conflict"))
    done = {index: data.draw(what) for index in touched}
    pairs = list(itertools.pairwise(touched))[::2] if data.draw(st.booleans(), "swapped") else []
    for one, other in pairs:
        done[one] = done[other] = "reordered"
        records[one]["index"], records[other]["index"] = other, one
    table, expected = [], []
    random = data.draw(st.randoms(use_true_random=False))
    for index, record in enumerate(records):
        how = done.get(index, "")
        table += [record] * {"gone": 0, "doubled": 2}.get(how, 1)
        if how in ("changed", "conflict"):
            value = _another(record, data.draw(st.sampled_from(CHANGEABLE)), random)
            table[len(table) - (how == "changed") :] = [value]
        if how == "reordered":
            expected += [("changed", index, index), ("reordered", index, index)]
        elif how in ("changed", "conflict"):
            expected.append((how, index, index))
    gone = sorted(index for index, how in done.items() if how == "gone")
    for first, last in verify.runs(gone) if gone else ():
        expected.append(("truncated" if last == SIZE - 1 else "missing", first, last))
    replace(copied, table)
    report = verify_store(copied, TRUST)
    assert sorted((f.kind, f.first, f.last) for f in report.findings) == sorted(expected)
    assert report.logs[0].doubles == sum(how == "doubled" for how in done.values())


CHANGEABLE = [field for field in FIELDS if field.name not in ("origin", "index")]


def _another(record, field, random):
    """The record with another value of a field, as odd as any."""
    plain = {"text": "x", "texts": ["x"], "bool": not record.get(field.name)}.get(field.type, 77)
    value = hostile(random).get(field.name, plain)
    if (record.get(field.name) or None) == (value or None):
        value = plain
    return record | {field.name: value}


def test_deleted_row(copied):
    """A row that is gone is missing, at its place."""
    copied.execute("ALTER TABLE audit_log DELETE WHERE index IN (300, 301, 303)")
    assert {("missing", 300, 301), ("missing", 303, 303)} <= set(found(copied))


def test_deleted_first_row(copied):
    """So it is at the very beginning."""
    copied.execute("ALTER TABLE audit_log DELETE WHERE index = 0")
    assert ("missing", 0, 0) in found(copied)


def test_all_rows_deleted(copied):
    """A log whose rows are all gone is truncated from the first."""
    copied.execute("TRUNCATE TABLE audit_log")
    assert ("truncated", 0, SIZE - 1) in found(copied)


@pytest.mark.parametrize("chunk", [256, 1 << 14])
def test_truncated_tail(copied, monkeypatch, chunk):
    """Rows that are gone at the end are told as such, though nothing follows them, and so is each
    range of rows that are gone, however they are read."""
    monkeypatch.setattr(logs, "_CHUNK", chunk)
    copied.execute("ALTER TABLE audit_log DELETE WHERE index >= 250 AND index != 600")
    assert found(copied) == [("missing", 250, 599), ("truncated", 601, SIZE - 1)]


@pytest.mark.parametrize("subject", ["", "0", "zzz"])
def test_inserted_row(copied, subject):
    """A second record with the place of another is a conflict, whichever is read first; that the
    sealed one is still there is said."""
    put(copied, [all_records(copied)[10] | {"subject": subject}])
    [finding] = findings(copied)
    assert (finding.kind, finding.first, finding.last) == ("conflict", 10, 10)
    assert "one of which was sealed" in finding.text


def test_inserted_and_changed(copied):
    """Where none of those that claim a place was sealed, that is told too."""
    put(copied, [all_records(copied)[10] | {"subject": "0"}])
    update(copied, "subject = 'someone else'", "index = 10 AND subject != '0'")
    assert found(copied) == [("conflict", 10, 10), ("changed", 10, 10)]


def test_swapped_rows(copied):
    """Two records that changed places are told as such, each with where it was sealed."""
    records = all_records(copied)
    records[20]["index"], records[30]["index"] = 30, 20
    replace(copied, records)
    told = findings(copied)
    assert [(one.kind, one.first, one.last) for one in told[:2]] == [
        ("changed", 20, 20), ("changed", 30, 30)
    ]  # fmt: skip
    assert sorted((one.kind, one.first, one.text.rpartition(" is ")[2]) for one in told[2:]) == [
        ("reordered", 20, f"in the table as record 30 of log '{ORIGIN}'"),
        ("reordered", 30, f"in the table as record 20 of log '{ORIGIN}'"),
    ]


def test_replayed_batch(copied):
    """A batch inserted again behind the end: rows that nobody sealed, and of them those that a
    writer numbered are copies."""
    copied.execute(
        f"INSERT INTO audit_log SELECT * REPLACE (index + {SIZE - 300} AS index)"
        " FROM (SELECT * FROM audit_log WHERE index >= 300 AND index < 340)"
    )
    (unsealed, *copies) = found(copied)
    assert unsealed == ("unsealed", SIZE, SIZE + 39)
    numbered = {n for n, record in enumerate(all_records(copied)) if "writer_seq" in record}
    assert {kind for kind, *_ in copies} == {"replayed"}
    assert {n for _, first, last in copies for n in range(first, last + 1)} == {
        index + SIZE - 300 for index in numbered if 300 <= index < 340
    }


@pytest.mark.parametrize("what", ["one", "all", "no text"])
def test_rows_and_tiles_changed(copied, what):
    """Whoever changes the tiles with the rows is caught by the signed root: what lies between two
    checkpoints is named. Nothing in it is so odd that verification ends."""
    value = "unhex('FF')" if what == "no text" else "'someone else'"
    update(copied, f"subject = {value}", "1" if what == "all" else "index = 400")
    if what == "no text":
        leaves = rows.leaves(copied, ORIGIN, 256, 512)[1]
        data = b"".join(map(leaf_hash, leaves))
        copied.execute("ALTER TABLE tiles DELETE WHERE level = 0 AND index = 1")
        copied.execute("INSERT INTO tiles VALUES", [(ORIGIN, 0, 1, 256, data)])
    else:
        forge_tiles(copied)
    told = found(copied)
    begins = 0 if what == "all" else 300
    ends = [size - 1 for size in SIZES if size > begins]
    assert [one for one in told if one[0] == "root"] == [("root", begins, end) for end in ends]
    assert [one for one in told if one[0] == "changed"] == [("changed", 400, 400)] * (
        what == "no text"
    )


def test_row_and_tile_deleted(copied):
    """A record that is gone without a trace in the tiles leaves its place, and no root."""
    copied.execute("ALTER TABLE audit_log DELETE WHERE index = 300")
    copied.execute("ALTER TABLE tiles DELETE WHERE level = 0 AND index = 1")
    told = found(copied)
    assert ("missing", 300, 300) in told
    assert ("tiles", 256, 511) in told
    assert [one for one in told if one[0] == "root"] == [("root", 300, 599), ("root", 300, 699)]


def test_row_cut_out(copied):
    """Nor does it help to move all that follow to close the gap: they are not what was signed."""
    records = all_records(copied)
    del records[400]
    replace(copied, [record | {"index": n} for n, record in enumerate(records)])
    forge_tiles(copied)
    told = found(copied)
    assert ("root", 300, 599) in told
    assert ("truncated", SIZE - 1, SIZE - 1) in told


@pytest.mark.parametrize("index", [SIZE, SIZE + 5, 2**53, 2**64 - 1])
def test_unsealed_rows(copied, index):
    """Rows beyond the newest checkpoint that stay uncovered are told."""
    put(copied, [{"origin": ORIGIN, "index": index, "kind": "decision"}])
    assert found(copied) == [("unsealed", index, index)]


def test_unsealed_rows_are_deleted(copied):
    """By the documentation's statement for a log whose disk is lost: it is then what was signed."""
    put(copied, [{"origin": ORIGIN, "index": SIZE + n, "kind": "decision"} for n in range(3)])
    assert found(copied) == [("unsealed", SIZE, SIZE + 2)]
    [(database,)] = copied.execute("SELECT currentDatabase()")
    statement = block("docs/operating.md", "ALTER TABLE").replace("prod/receiver", ORIGIN)
    copied.execute(statement.replace("authz.", f"{database}.").replace("SIZE", str(SIZE)))
    assert found(copied) == []


@pytest.mark.parametrize("origin", ["elsewhere", "", "'; --", "\N{SNOWMAN}"])
def test_unknown_origin(copied, origin):
    """Rows of a log that nobody trusts are told with their range."""
    put(copied, [{"origin": origin, "index": index} for index in (3, 9)])
    assert found(copied) == [("unknown_origin", 3, 9)]


def test_origin_that_is_no_text(copied):
    """Also if its name is not even text."""
    copied.execute("INSERT INTO audit_log (origin, index) SELECT unhex('FF'), 4")
    assert found(copied) == [("unknown_origin", 4, 4)]


def sealed_at_index(copied):
    rows = copied.execute("SELECT index, sealed FROM audit_log WHERE sealed != '' ORDER BY index")
    assert [sealed for _, sealed in rows] == [SEALED] * 2
    assert copied.execute("SELECT index FROM sealed_originals ORDER BY index") == [
        (index,) for index, _ in rows
    ]
    return rows[1][0]


def test_changed_sealed_input(copied):
    """A sealed input that is not the one its record names is told at that record, and no other."""
    index = sealed_at_index(copied)
    update(copied, "ciphertext = concat(ciphertext, 'x')", f"index = {index}", "sealed_originals")
    assert found(copied) == [("sealed_original", index, index)]


@pytest.mark.parametrize(("index", "decision_id"), [("7", "''"), ("index", "'d1'")])
def test_invented_sealed_input(copied, index, decision_id):
    """So is one put beside a record that names none, or filed under another decision."""
    place = sealed_at_index(copied)
    copied.execute(
        "INSERT INTO sealed_originals (origin, index, decision_id, sealed_at, ciphertext)"
        f" SELECT origin, {index}, {decision_id}, sealed_at, ciphertext FROM sealed_originals"
        f" WHERE index = {place}"
    )
    place = place if index == "index" else 7
    assert found(copied) == [("sealed_original", place, place)]


@pytest.mark.parametrize("table", ["sealed_originals", "policies"])
def test_expired_attachments(copied, table):
    """What retention took is no finding; what is there twice, after a crash, is none either."""
    copied.execute(f"INSERT INTO {table} SELECT * FROM {table}")
    assert found(copied) == []
    copied.execute(f"TRUNCATE TABLE {table}")
    assert found(copied) == []


def test_changed_policy_text(copied):
    """An archived policy that is not its revision's text is told at the first record with it."""
    update(copied, "text = 'package b'", "1", "policies")
    [(index,)] = copied.execute("SELECT min(index) FROM audit_log WHERE policy_revision != ''")
    assert found(copied) == [("policy_text", index, index)]
