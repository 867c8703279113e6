"""A log in a folder: it says what the database says, and what is done to the folder is found."""

import hashlib
import json

import pytest
from hostile import ODD, RECORDS, TEXTS
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from logs import SIGNER, TRUST, TestLog

from authz.errors import UsageError
from authz.journal.chain import policy_notice
from authz.ledger import Checkpoint, Signer, Tree, leaf_hash, sign_note
from authz.ledger.tiles import pack, unpack
from authz.record import clean
from authz.store import policies
from authz.store.client import connect
from authz.store.logs import StoredLogs
from authz.verify.folder import FolderLogs, directory_of, write_log, write_policies
from authz.verify.logs import verify_logs

ORIGIN = SIGNER.name
SIZE = 600
REVISION = hashlib.sha256(b"package a").hexdigest()
NOT_CLAIMED = {"checkpoint": "repeats the last line of checkpoints.ndjson"}
SOME = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _records(log):
    """Of a writer and of Envoy, some with text that nobody would write."""
    archive = policy_notice(1_700_000_000_000_000, REVISION, b"package a")
    entries = log.written_entries([(log.identity.start_notice(1, "1"), b""), archive])
    odd = [*ODD, "\\", "\\u000B", "/\\/", "\x1b[31m", "a\u2028b", "\x0b\x0e\x1f"]
    for number in range(SIZE):
        text = odd[number % len(odd)]
        record = {"kind": "decision", "decision_id": f"d{number}", "subject": text, "time": number}
        record = clean(record | {"roles": [text, "b"], "path": text, "policy_revision": REVISION})
        entries.append((record | {"kind": "access"}, b""))
        if number % 3:
            entries += log.written_entries([(record, b"")])
    return entries[:SIZE]


@pytest.fixture(scope="module")
def exported(clickhouse, tmp_path_factory):
    """A log in a database, and what was exported of it."""
    store = clickhouse.store.rpartition("/")[0] + "/folder"
    with connect(clickhouse.store) as admin:
        admin.execute("CREATE DATABASE folder")
        log = TestLog(tmp_path_factory.mktemp("log"), store)
        entries = _records(log)
        for first, end in ((0, 1), (1, 300), (300, SIZE)):
            log.append_entries(entries[first:end])
            log.seal()
        log.writer_journal.close()
        folder = tmp_path_factory.mktemp("folder")
        export(log.client, folder)
        yield log.client, folder
        log.close()
        admin.execute("DROP DATABASE folder")


def export(client, folder):
    assert write_log(StoredLogs(client), ORIGIN, folder, lambda _done, _all: None) == SIZE
    found = policies.find(client, "", 10)
    write_policies(((one.revision, one.text) for one in found), folder)


def files(folder):
    return {
        str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture
def folder(exported):
    """The folder, made whole again afterwards."""
    _, folder = exported
    kept = {path: path.read_bytes() for path in files(folder).values()}
    yield folder
    restore(folder, kept)


def restore(folder, kept):
    for path in files(folder).values():
        if path not in kept:
            path.unlink()
    for path, data in kept.items():
        if not path.is_file() or path.read_bytes() != data:
            path.write_bytes(data)


def found(folder, trust=TRUST):
    """The findings as (kind, first, last), or the error that a user is told."""
    try:
        report = verify_logs(FolderLogs(folder), trust)
    except UsageError as error:
        return str(error)
    assert report.verified == (not report.findings)
    return [(finding.kind, finding.first, finding.last) for finding in report.findings]


def test_it_says_what_the_database_says(exported):
    """The folder and the database are found alike, count for count; every file is a C2SP one."""
    client, folder = exported
    reports = [verify_logs(source, TRUST) for source in (StoredLogs(client), FolderLogs(folder))]
    for report in reports:
        report.seconds = 0
        assert report.verified, report.findings
    assert reports[0] == reports[1]
    log = "logs/test%2Freceiver"
    assert set(files(folder)) == {
        f"policies/{REVISION}",
        f"{log}/checkpoint", f"{log}/checkpoints.ndjson",
        f"{log}/tile/0/000", f"{log}/tile/0/001", f"{log}/tile/0/002.p/88", f"{log}/tile/1/000.p/2",
        f"{log}/tile/entries/000", f"{log}/tile/entries/001", f"{log}/tile/entries/002.p/88",
    }  # fmt: skip


@pytest.mark.thorough
@given(st.lists(st.one_of(TEXTS, st.sampled_from(ODD)), min_size=30, max_size=30), RECORDS)
@settings(max_examples=8,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_any_text_is_found_as_it_was_sealed(database, tmp_path_factory, texts, hostile):
    """Whatever text a record holds, it verifies out of the database and out of a folder."""
    log = TestLog(tmp_path_factory.mktemp("log"), database)
    try:
        for table in ("audit_log", "tiles", "checkpoints"):
            log.client.execute(f"TRUNCATE TABLE {table}")
        hostile = {name: hostile[name] for name in hostile if name in ("roles", "evidence", "host")}
        records = [{"kind": "access", "subject": text, "roles": [text]} for text in texts]
        log.append([clean(record) for record in [*records, hostile | {"kind": "access"}]])
        log.seal()
        folder = tmp_path_factory.mktemp("folder")
        write_log(StoredLogs(log.client), ORIGIN, folder, lambda _done, _all: None)
        for source in (StoredLogs(log.client), FolderLogs(folder)):
            part = source.part(ORIGIN, 0, len(records) + 1)
            assert [leaf_hash(leaf) for leaf in part.leaves] == list(part.hashes)
            report = verify_logs(source, TRUST)
            assert report.findings == []
            assert report.checked == len(records) + 1
    finally:
        log.end()


def claimed(folder):
    """What a folder says of its log, for those who verify it."""
    said = {}
    for name, path in files(folder).items():
        if name.endswith(".ndjson"):
            said[name] = [json.loads(line) for line in path.read_bytes().splitlines()]
        elif path.name not in NOT_CLAIMED:
            said[name] = path.read_bytes()
    return said


@pytest.mark.thorough
@SOME
@given(
    st.integers(0, 9), st.integers(0, 2**32), st.sampled_from(("flip", "cut", "remove", "swap")),
    st.integers(1, 255),
)  # fmt: skip
@example(0, 0, "remove", 1)
@example(1, 0, "cut", 1)
def test_any_spoilt_file(folder, number, place, how, flip):
    """Whichever byte of whichever file is another, whichever file is cut, gone or changed for
    another one: it is found or refused, unless it says the same still. Only the file `checkpoint`,
    which repeats another, and whether there is a policy's text, are not claimed."""
    kept = {path: path.read_bytes() for path in files(folder).values()}
    before = claimed(folder)
    paths = list(kept)
    path = paths[number % len(paths)]
    data = kept[path]
    if how == "flip":
        at = place % len(data)
        path.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
    elif how == "cut":
        path.write_bytes(data[: place % len(data)])
    elif how == "remove":
        path.unlink()
    else:
        other = paths[place % len(paths)]
        path.write_bytes(kept[other])
        other.write_bytes(data)
    try:
        if found(folder) == []:
            after = claimed(folder)
            gone = before.keys() - after.keys()
            assert {name for name in before if before[name] != after.get(name)} == gone
            assert all(name.startswith("policies/") for name in gone)
    finally:
        restore(folder, kept)


def log_of(folder):
    return directory_of(folder, ORIGIN)


def change_entries(folder, tile, change):
    """An entry bundle as `change` leaves it."""
    path = log_of(folder) / "tile" / "entries" / tile
    entries = list(unpack(path.read_bytes()))
    change(entries)
    path.write_bytes(pack(entries))
    return entries


@pytest.mark.parametrize("index", [0, 255, 256, 511])
def test_the_index_of_a_removed_record(folder, index):
    """Of a folder that lacks one record, its index is told, and no other one."""

    def change(entries):
        entries[index % 256] = b""

    change_entries(folder, f"00{index // 256}", change)
    assert {one for one in found(folder) if one[0] not in ("chain", "sequence")} == {
        ("missing", index, index)
    }


def test_the_tail_is_gone(folder):
    """A bundle that is cut at a record, or not there, is a log that is truncated."""
    path = log_of(folder) / "tile" / "entries" / "002.p" / "88"
    entries = list(unpack(path.read_bytes()))
    path.write_bytes(pack(entries[:80]))
    assert found(folder) == [("truncated", 592, 599)]
    path.unlink()
    assert found(folder) == [("truncated", 512, 599)]


def test_rolled_back_and_unsealed(folder):
    """Without the newest checkpoint, there are records that none is over; with a state, the log is
    at an older one."""
    state = {}
    assert verify_logs(FolderLogs(folder), TRUST, state).verified
    path = log_of(folder) / "checkpoints.ndjson"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert ("unsealed", 300, 599) in found(folder)
    report = verify_logs(FolderLogs(folder), TRUST, state)
    assert ("rollback", 300, 599) in [(f.kind, f.first, f.last) for f in report.findings]


def test_what_is_new_in_a_folder(folder):
    """A folder that was exported later is checked from where the one before ended."""
    path = log_of(folder) / "checkpoints.ndjson"
    lines = path.read_bytes().splitlines(keepends=True)
    state, whole = {}, {}
    verify_logs(FolderLogs(folder), TRUST, whole)
    entries = log_of(folder) / "tile" / "entries"
    kept = {one: one.read_bytes() for one in entries.rglob("*") if one.is_file()}
    path.write_bytes(b"".join(lines[:-1]))
    (entries / "002.p" / "88").unlink()
    (entries / "001").write_bytes(pack(list(unpack(kept[entries / "001"]))[:44]))
    assert verify_logs(FolderLogs(folder), TRUST, state).verified
    for changed, data in {**kept, path: b"".join(lines)}.items():
        changed.write_bytes(data)
    report = verify_logs(FolderLogs(folder), TRUST, state, incremental=True)
    assert (report.findings, report.checked) == ([], 300)
    assert state == whole


def test_entries_and_tiles_of_somebody_else(folder):
    """Entries that are no records, with tiles that say that they are, are no error of ours; nor is
    a log that was made up whole, without the key."""
    made = [b"\0", b"{}", b'{"a":1}', b"\xff", b'{"index":1.5}', b"[" * 60_000, b"null"]
    made += [b'{"index":7,"origin":"test/receiver","time":-1}', b'{"origin":"test/receiver"}']

    def change(entries):
        entries[: len(made)] = made

    entries = change_entries(folder, "000", change)
    assert ("missing", 0, 8) in found(folder)
    tree = Tree()
    [tile] = tree.append(map(leaf_hash, entries))
    (log_of(folder) / "tile" / "0" / "000").write_bytes(tile.data)
    assert "root" in {kind for kind, _, _ in found(folder)}
    note = sign_note(Checkpoint(ORIGIN, 256, tree.root()).text(), Signer(ORIGIN, bytes(32)))
    line = json.dumps({"size": 256, "note": note}) + "\n"
    (log_of(folder) / "checkpoints.ndjson").write_text(line)
    assert {"other_key", "no_checkpoint"} <= {kind for kind, _, _ in found(folder)}


def test_a_claimed_size(folder):
    """A checkpoint of any size that nobody trusted signed takes no time."""
    path = log_of(folder) / "checkpoints.ndjson"
    size = 2**62
    note = sign_note(Checkpoint(ORIGIN, size, bytes(32)).text(), Signer(ORIGIN, bytes(32)))
    with path.open("a") as lines:
        lines.write(json.dumps({"size": size, "note": note}) + "\n")
    far = log_of(folder) / "tile" / "entries" / "x999" / "x999" / "x999" / "000"
    far.parent.mkdir(parents=True)
    far.write_bytes(pack([b"{}"]))
    index = 999_999_999_000 * 256
    assert found(folder) == [("other_key", -1, -1), ("unsealed", index, index)]
    unknown = directory_of(folder, "x/y")
    unknown.mkdir()
    (unknown / "checkpoints.ndjson").write_bytes(path.read_bytes())
    assert ("unknown_origin", 0, size - 1) in found(folder)
    (unknown / "checkpoints.ndjson").unlink()
    unknown.rmdir()


@pytest.mark.parametrize(
    "line",
    ["x", "{}", "[]", "1", "null", '{"size": 1}', '{"size": "1", "note": ""}', "[" * 9999,
     '{"size": 1e999, "note": ""}', '{"size": -1, "note": ""}', '{"size": 1, "note": 5}',
     '{"size": 18446744073709551616, "note": ""}', '{"size": 1, "note": "\\ud800"}'],
)  # fmt: skip
def test_lines_that_are_no_checkpoints(folder, line):
    """What is no line of checkpoints is refused, and the file is named."""
    (log_of(folder) / "checkpoints.ndjson").write_text(line + "\n")
    assert "checkpoints.ndjson" in found(folder)


def test_checkpoints_in_another_order(folder):
    """Checkpoints that are not in order are refused."""
    path = log_of(folder) / "checkpoints.ndjson"
    path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))))
    assert "order" in found(folder)


def test_files_of_other_kinds(folder, tmp_path):
    """Directories in place of files, files in place of directories and names that are nearly
    right are refused or passed over."""
    partial = log_of(folder) / "tile" / "0" / "002.p"
    for name in ("\u0663", "007", "0", "1000", "-1", "x", ".88"):
        (partial / name).write_bytes(b"x")
    assert found(folder) == []
    (partial / "99").mkdir()
    assert "99" in found(folder)
    (partial / "99").rmdir()
    whole = log_of(folder) / "tile" / "0" / "001"
    whole.unlink()
    whole.mkdir()
    assert "001" in found(folder)
    whole.rmdir()
    (folder / "logs" / "a file").write_text("")
    assert "a file" in found(folder)
    (folder / "logs" / "a file").unlink()
    assert "authz export" in found(tmp_path)
    (tmp_path / "logs").write_text("")
    assert "authz export" in found(tmp_path)


def test_an_archived_policy(folder):
    """A policy's text that is another is told; one that is not there is not missed."""
    path = folder / "policies" / REVISION
    path.write_bytes(b"package b")
    assert [kind for kind, _, _ in found(folder)] == ["policy_text"]
    path.unlink()
    assert found(folder) == []


def test_an_export_of_what_somebody_claims(exported, tmp_path):
    """Checkpoints, rows and tiles that somebody slipped in make an export neither endless nor
    impossible, and what it holds is found as the database is."""
    client, _ = exported
    client.execute("INSERT INTO checkpoints (origin, size, note) VALUES", [(ORIGIN, 2**62, "x")])
    client.execute("INSERT INTO audit_log (origin, index) VALUES", [(ORIGIN, 2**52)])
    client.execute(
        "INSERT INTO audit_log (origin, index, details) VALUES", [(ORIGIN, 7, "x" * 70_000)]
    )
    client.execute("INSERT INTO policies (revision, text) VALUES", [("../../x", "x")])
    try:
        size = write_log(StoredLogs(client), ORIGIN, tmp_path, lambda _done, _all: None)
        assert size == 2**62
        found_policies = policies.find(client, "", 10)
        write_policies(((one.revision, one.text) for one in found_policies), tmp_path)
        assert {kind for kind, _, _ in found(tmp_path)} == {"signature", "unsealed"}
    finally:
        for statement in (
            "ALTER TABLE checkpoints DELETE WHERE size > 600",
            "ALTER TABLE audit_log DELETE WHERE index > 600 OR length(details) = 70000",
            "ALTER TABLE policies DELETE WHERE revision != %(revision)s",
        ):
            client.execute(statement, {"revision": REVISION}, settings={"mutations_sync": 1})
