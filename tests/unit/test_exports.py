"""Exports out of a real ClickHouse, and what is done to them is found."""

import hashlib
import json
import shutil

import orjson
import pytest
from hostile import ODD
from logs import SIGNER, TRUST, TestLog

from authz.ledger import Checkpoint, NoteError, ProofError, Signer, leaf_hash, sign_note, tree_hash
from authz.record import clean
from authz.report.exports import manifest as of_manifest
from authz.report.exports import words
from authz.report.exports.cells import read_csv
from authz.report.exports.check import check_export
from authz.report.exports.manifest import FILES, ManifestError
from authz.report.exports.write import write_export
from authz.store import exports, rows
from authz.store.client import connect
from authz.store.exports import Selection
from authz.store.lookups import Window
from authz.store.pages import Filters
from authz.trust import TrustedLog

ORIGIN = SIGNER.name
SIZE = 900
TOKEN = "0a1b2c3d.token"
FORMS = tuple(FILES)


def _records():
    """Decisions and accesses, with text that nobody would write; every 50th names the patient."""
    for number in range(SIZE):
        odd = ODD[number % len(ODD)]
        yield clean({
            "kind": "decision" if number % 3 else "access", "decision_id": f"d{number}",
            "subject": "dr.alder" if number % 7 == 0 else odd, "roles": [odd, "=1+1"],
            "reason": odd, "time": number,
            "action": "R", "path": "/fhir/Patient/{id}", "status": 200, "allowed": True,
            "patients": [TOKEN] if number % 50 == 0 else [],
        })  # fmt: skip


@pytest.fixture(scope="module")
def site(clickhouse, tmp_path_factory):
    """A log in a database of its own: its client, and the leaves as they were sealed."""
    store = clickhouse.store.rpartition("/")[0] + "/exports"
    with connect(clickhouse.store) as admin:
        admin.execute("CREATE DATABASE exports")
        log = TestLog(tmp_path_factory.mktemp("log"), store)
        records, leaves = list(_records()), []
        for first, end in ((0, 1), (1, 300), (300, SIZE)):
            log.append(records[first:end])
            leaves += log.seal().leaves
        yield log.client, leaves
        log.end()
        admin.execute("DROP DATABASE exports")


def only(**filters):
    return Selection(filters=Filters(**filters))


def write(client, folder, form="ndjson", wanted=None):
    return write_export(client, [ORIGIN], folder, form, wanted or Selection(), lambda *_: None)


@pytest.fixture(scope="module")
def folders(site, tmp_path_factory):
    """An export of all in each form."""
    made = {form: tmp_path_factory.mktemp(form) for form in FORMS}
    for form, folder in made.items():
        write(site[0], folder, form)
    return made


@pytest.fixture
def copied(folders, tmp_path):
    """Gives a copy of an export of a form, and its manifest as JSON."""

    def copy(form):
        folder = tmp_path / form
        shutil.copytree(folders[form], folder)
        return folder, json.loads((folder / "manifest.json").read_bytes())

    return copy


def check(folder, logs=TRUST):
    return check_export(folder / "manifest.json", logs)


def test_whole_records_as_they_were_sealed(site, folders):
    """NDJSON has the leaves as they were hashed, one a line; CSV gives the same back; together they
    give the signed root by themselves."""
    _, leaves = site
    data = (folders["ndjson"] / "records.ndjson").read_bytes()
    assert data.split(b"\n")[:-1] == leaves
    with (folders["csv"] / "records.csv").open(newline="") as file:
        assert [orjson.dumps(one, option=orjson.OPT_SORT_KEYS) for one in read_csv(file)] == leaves
    for form in ("ndjson", "csv"):
        checked = check(folders[form])
        assert checked.proven
        [log] = checked.logs
        assert (log.whole, log.part.runs, log.part.proof) == (True, [[0, SIZE]], [])
        assert log.checkpoint.root == tree_hash(list(map(leaf_hash, leaves)))
        assert any("all its 900 records" in line for line in words.proven(checked))


def test_fhir_is_told_to_be_unproven(folders):
    """Of AuditEvents only the file is held against the manifest, and that is said."""
    checked = check(folders["fhir"])
    assert not checked.proven
    assert "does not give the record back" in " ".join(words.not_proven(checked))
    lines = (folders["fhir"] / "audit-events.ndjson").read_bytes().splitlines()
    assert len(lines) == SIZE == checked.manifest.files[0].lines
    assert all(json.loads(line)["resourceType"] == "AuditEvent" for line in lines)


@pytest.mark.parametrize("form", ["ndjson", "csv"])
@pytest.mark.parametrize(
    ("wanted", "meets"),
    [(only(subject="dr.alder"), lambda one: one.get("subject") == "dr.alder"),
     (only(patients=(TOKEN, "0a1b2c3d.other")), lambda one: one.get("patients") == [TOKEN]),
     (Selection(kinds=("access",)), lambda one: one.get("kind") == "access"),
     (Selection(filters=Filters(subject="dr.alder"), kinds=("decision", "notice")),
      lambda one: one.get("subject") == "dr.alder" and one.get("kind") == "decision"),
     (only(role="=1+1", decision="allowed", reason="LEADING"),
      lambda one: "leading" in one.get("reason", "")),
     (only(decision="denied"), lambda one: False),
     (only(subject="nobody"), lambda one: False)],
    ids=["subject", "patient", "kind", "both", "others", "denied", "none"],
)  # fmt: skip
def test_filters(site, tmp_path, form, wanted, meets):
    """Of what is filtered the records are those that meet it, each proven to be the log's."""
    client, leaves = site
    manifest = write(client, tmp_path, form, wanted)
    expected = [leaf for leaf in leaves if meets(orjson.loads(leaf))]
    assert manifest.records == len(expected)
    if form == "ndjson":
        assert (tmp_path / "records.ndjson").read_bytes().split(b"\n")[:-1] == expected
    checked = check(tmp_path)
    assert checked.proven
    assert "no other record meets the filters" in " ".join(words.not_proven(checked))


def test_a_time(site, tmp_path):
    """A window of time is a whole part of the log, and proven to be."""
    client, leaves = site
    times = [orjson.loads(leaf)["sealed_at"] for leaf in leaves]
    assert times[0] < times[1] <= times[299] < times[300]
    window = Window(times[1], times[300])
    expected = [leaf for leaf, at in zip(leaves, times, strict=True) if times[1] <= at < times[300]]
    write(client, tmp_path, wanted=Selection(window))
    assert (tmp_path / "records.ndjson").read_bytes().split(b"\n")[:-1] == expected
    [log] = check(tmp_path).logs
    assert log.whole
    assert log.part.end - log.part.first == len(expected)


def test_batches_are_bounded(site, tmp_path, monkeypatch):
    """However small the batches are, the export is the same: large records make them smaller."""
    monkeypatch.setattr(exports, "_MOST_RECORDS", 128)
    monkeypatch.setattr(exports, "_MOST_BYTES", 40_000)
    client, leaves = site
    batches = list(exports.leaves(client, ORIGIN, SIZE, Selection()))
    assert [leaf for batch in batches for leaf in batch.leaves] == leaves
    assert len(batches) > SIZE // 128
    assert max(sum(map(len, batch.leaves)) for batch in batches[1:]) < 80_000


def test_too_many_places_for_a_proof(site, tmp_path, monkeypatch):
    """Records that lie all over the log get no proof, and that is said; their number is checked."""
    monkeypatch.setattr("authz.report.exports.write.MOST_RUNS", 5)
    write(site[0], tmp_path, wanted=Selection(kinds=("access",)))
    checked = check(tmp_path)
    assert not checked.proven
    assert "more than 5 places" in " ".join(words.not_proven(checked))


def test_there_is_something_already(site, tmp_path):
    """Nothing is overwritten, and files are for their owner only."""
    write(site[0], tmp_path)
    assert (tmp_path / "records.ndjson").stat().st_mode & 0o077 == 0
    with pytest.raises(FileExistsError):
        write(site[0], tmp_path)


@pytest.mark.parametrize("form", ["ndjson", "csv", "fhir"])
def test_a_changed_file(copied, form):
    """A file that is another than the manifest tells of is found, in whichever form."""
    folder, _ = copied(form)
    path = folder / FILES[form]
    path.write_bytes(path.read_bytes().replace(b"dr.alder", b"dr.aider", 1))
    with pytest.raises(ProofError, match=FILES[form]):
        check(folder)
    path.unlink()
    with pytest.raises(ProofError, match=FILES[form]):
        check(folder)


def _with(folder, told, form, data):
    """Put `data` into the export's file, and have the manifest fit it."""
    (folder / FILES[form]).write_bytes(data)
    told["files"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [(lambda lines: [lines[0].replace(b'"d0"', b'"d1"'), *lines[1:]], "another root"),
     (lambda lines: lines[1:], "not in its place"),
     (lambda lines: lines[:-1], "fewer records"),
     (lambda lines: [*lines, lines[-1]], "not in its place"),
     (lambda lines: [lines[1], lines[0], *lines[2:]], "not in its place"),
     (lambda lines: [lines[0].replace(b",", b", ", 1), *lines[1:]], "canonical"),
     (lambda lines: [b"\xff", *lines], "canonical"),
     (lambda lines: [*lines, b'{"origin":"other"}'], "does not tell of"),
     (lambda lines: [], "not where they should be")],
)  # fmt: skip
def test_whoever_changes_both_file_and_manifest(copied, spoil, wrong):
    """A record that is changed, left out, added or moved is found though the manifest fits."""
    folder, told = copied("ndjson")
    lines = (folder / "records.ndjson").read_bytes().split(b"\n")[:-1]
    _with(folder, told, "ndjson", b"".join(line + b"\n" for line in spoil(lines)))
    with pytest.raises((ProofError, ManifestError), match=wrong):
        check(folder)


def test_a_changed_cell(copied):
    """The same of a spreadsheet that was saved again with one cell changed."""
    folder, told = copied("csv")
    data = (folder / "records.csv").read_bytes()
    _with(folder, told, "csv", data.replace(b"dr.alder", b"dr.aider", 1))
    with pytest.raises(ProofError, match="another root"):
        check(folder)
    _with(folder, told, "csv", data.replace(b"dr.alder", b"=x", 1))
    with pytest.raises(ProofError, match="what follows record 0"):
        check(folder)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [({"more": 1}, "more"), ({"format": "xml"}, "format"), ({"logs": None}, "logs"),
     ({"logs.0": {"records": 3}}, "runs"), ({"logs.0": {"first": 1}}, "runs"),
     ({"logs.0": {"runs": [[0, SIZE + 1]], "end": SIZE + 1, "records": SIZE + 1}}, "runs"),
     ({"logs.0": {"runs": [[SIZE, 0]], "first": SIZE, "end": 0, "records": -SIZE}}, "records"),
     ({"logs.0": {"proof": ["AAAA"]}}, "hash"), ({"logs.0": {"origin": "other"}}, "another log"),
     ({"files.0": {"name": "../records.ndjson"}}, "name"), ({"files.0": {"name": ".."}}, "name"),
     ({"logs": []}, "does not tell of")],
)  # fmt: skip
def test_a_manifest_that_is_none(copied, change, wrong):
    """A manifest that was made up or changed is refused, by what is wrong in it."""
    folder, told = copied("ndjson")
    for name, value in change.items():
        section, _, number = name.partition(".")
        if number:
            told[section][int(number)] |= value
        else:
            told[section] = value
    (folder / "manifest.json").write_text(json.dumps(told))
    with pytest.raises((ManifestError, ProofError), match=wrong):
        check(folder)


def test_claims_that_nobody_can_check(copied):
    """An export that gives no record back claims no proof, whatever its manifest says."""
    folder, told = copied("fhir")
    told["logs"][0] |= {"runs": [[0, SIZE]], "proof": []}
    (folder / "manifest.json").write_text(json.dumps(told))
    assert not check(folder).proven


def test_whose_checkpoint(copied):
    """A checkpoint counts that a trusted key signed and enough witnesses have seen."""
    folder, told = copied("ndjson")
    with pytest.raises(ProofError, match="does not name"):
        check(folder, [TrustedLog("other", TRUST[0].keys)])
    witness = Signer("witness", bytes(32)).verifier
    with pytest.raises(ProofError, match="0 of the trusted witnesses"):
        check(folder, [TrustedLog(ORIGIN, TRUST[0].keys, (), (witness,), 1)])
    other = Signer(ORIGIN, bytes(32))
    told["logs"][0]["checkpoint"] = sign_note(Checkpoint(ORIGIN, SIZE, bytes(32)).text(), other)
    (folder / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(NoteError):
        check(folder)
    with pytest.raises(ProofError, match="another root"):
        check(folder, [TrustedLog(ORIGIN, (other.verifier,))])


def test_too_large_a_manifest(copied, monkeypatch):
    """A manifest of any size does not fill the memory."""
    monkeypatch.setattr("authz.report.exports.check.MOST_BYTES", 100)
    with pytest.raises(ManifestError, match="more than 100"):
        check(copied("ndjson")[0])
    assert of_manifest.MOST_BYTES > 1 << 20


def test_records_that_are_gone(log, tmp_path):
    """Records that have expired are missed, and the rest is proven to be the log's all the same."""
    log.append(list(_records())[:700])
    log.seal()
    gone = "(index < 100) OR (index BETWEEN 400 AND 420)"
    log.client.execute(f"ALTER TABLE audit_log DELETE WHERE {gone} SETTINGS mutations_sync = 2")
    manifest = write(log.client, tmp_path)
    assert manifest.logs[0].runs == [[100, 400], [421, 700]]
    checked = check(tmp_path)
    assert checked.proven
    assert not checked.logs[0].whole
    assert "121 records" in " ".join(words.not_proven(checked))


def test_what_was_done_to_the_database(log, tmp_path):
    """A row that is there twice is one record. Of two for one place, and of bytes that are no text,
    something is written that can be read, and that proves nothing."""
    log.append(list(_records())[:300])
    leaves = log.seal().leaves
    rows.insert(log.client, leaves[10:12])
    write(log.client, tmp_path / "twice")
    assert (tmp_path / "twice" / "records.ndjson").read_bytes().split(b"\n")[:-1] == leaves
    assert check(tmp_path / "twice").proven
    log.client.execute(
        "INSERT INTO audit_log (origin, index, subject) VALUES (%(o)s, 5, 'invented')",
        {"o": ORIGIN},
    )
    write(log.client, tmp_path / "two")
    checked = check(tmp_path / "two")
    assert not checked.proven
    assert "several records claim one place" in " ".join(words.not_proven(checked))
    change = "ALTER TABLE audit_log UPDATE reason = unhex('61ff0a62') WHERE index = 7"
    log.client.execute(f"{change} SETTINGS mutations_sync = 2")
    for form in FORMS:
        write(log.client, tmp_path / form, form)
        assert len((tmp_path / form / FILES[form]).read_text()) > 300
    assert b"a\\\\xff\\nb" in (tmp_path / "ndjson" / "records.ndjson").read_bytes()
