"""The log's key is rotated: each checkpoint is signed by the key that its last leaf leaves in
force, wherever the receiver was stopped."""

import asyncio
import itertools
import json
import stat

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from logs import SIGNER, TestLog
from programs import AUTHZ, run, world

from authz.errors import UsageError
from authz.journal.commit import Committer
from authz.keys import LOG_KEY, NEXT_KEY, read_key, rotation_notice, rotation_text, write_key
from authz.ledger import Checkpoint, NoteError, Signer, Verifier, open_note
from authz.receiver.sequence import Log
from authz.serve.log_keys import LogKeys, following_key
from authz.store.client import connect
from authz.trust import load_trust
from authz.verify import verify_store
from authz.verify.rotation import Rotations

NEXT, THIRD = Signer(SIGNER.name, b"2" * 32), Signer(SIGNER.name, b"3" * 32)
OTHER = Signer("test/other", b"4" * 32)


def records(count):
    return [{"kind": "access", "reason": str(number)} for number in range(count)]


def signers(note):
    keys = {key.verifier: key for key in (SIGNER, NEXT, THIRD)}
    return [keys[key] for key in open_note(note, keys)[1]]


def rotation(old=SIGNER, new=NEXT, index=0, time_us=1):
    return rotation_notice(old, new, time_us) | ({"index": index} if index else {})


class Rotating(TestLog):
    """A log whose keys are in files, taken over as the receiver does."""

    def open(self):
        path = self.directory / LOG_KEY
        if not path.exists():
            write_key(path, SIGNER)
        self.signer = read_key(path)
        self.following = following_key(self.directory, self.signer.name)
        super().open()

    def put(self, batch):
        self.writer.put(batch.first, batch.leaves, batch.tiles, batch.note, batch.attachments)

    def look(self):
        """What the receiver does every second."""

        async def one():
            committer = Committer(self.journal, self.log)
            keys = LogKeys(self.directory, self.log, committer)
            await keys._look()
            await committer.drain()
            committer.close()

        asyncio.run(one())

    @property
    def trust(self):
        path = self.directory / "trust.yaml"
        return yaml.safe_load(path.read_text())["logs"][0]["keys"]


@pytest.fixture
def log(tmp_path):
    log = Rotating(tmp_path)
    yield log
    log.end()


@pytest.mark.thorough
@pytest.mark.parametrize("stopped", range(7))
def test_stopped_between_any_two_steps(tmp_path, database, stopped):
    """Stopped after any step of a rotation, the receiver ends it at its next start: with one leaf,
    under checkpoints that verify, and only the new key is left."""
    log, steps = Rotating(tmp_path, database), itertools.count()

    def step():
        if next(steps) == stopped:
            log.restart()

    log.append(records(3))
    log.seal(2)
    write_key(tmp_path / NEXT_KEY, NEXT)
    step()
    log.look()  # the leaf is durable, and waits behind record 2
    step()
    log.look()
    log.append(records(2))
    assert signers(log.seal(1).note) == [SIGNER]
    step()
    batch = log.log.seal(1)
    step()
    batch = log.log.seal(1) if stopped == 3 else batch
    assert signers(batch.note) == [NEXT], "the leaf of the rotation itself is the new key's"
    log.put(batch)
    step()
    if stopped == 4:
        batch = log.log.seal(1)
        log.put(batch)
    log.log.finish(batch)
    step()
    log.look()
    step()
    log.restart()
    log.look()
    log.append(records(1))
    log.seal()
    assert read_key(tmp_path / LOG_KEY) == NEXT
    assert not (tmp_path / NEXT_KEY).exists()
    assert log.trust == [str(SIGNER.verifier), str(NEXT.verifier)]
    with connect(database) as client:
        assert verify_store(client, load_trust(tmp_path / "trust.yaml")).findings == []
        query = "SELECT count() FROM audit_log WHERE event = 'key_rotation'"
        assert client.execute(query) == [(1,)]
        [(note,)] = client.execute("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1")
    assert signers(note) == [NEXT]
    with pytest.raises(NoteError):  # for who does not accept the new key
        open_note(note, [SIGNER.verifier])
    log.end()


def test_sealed_before_and_stored_after(log):
    """A checkpoint that was signed with the old key and not stored yet stays as it was signed, also
    if the log has only the new key by then."""
    log.append(records(2))
    first = log.log.seal(2)
    write_key(log.directory / NEXT_KEY, NEXT)
    log.look()
    log.restart()
    again = log.log.seal(10)
    assert (again.note, signers(again.note)) == (first.note, [SIGNER])
    log.log.finish(again)
    assert signers(log.log.seal(10).note) == [NEXT]


def test_twice(log):
    """A second rotation follows the first; the trust file keeps all keys, oldest first."""
    for key in (NEXT, THIRD):
        log.append(records(1))
        write_key(log.directory / NEXT_KEY, key)
        log.look()
        log.log.finish(log.log.seal(10))
        log.look()
        log.restart()
        assert read_key(log.directory / LOG_KEY) == key
    log.look()
    assert log.trust == [str(key.verifier) for key in (SIGNER, NEXT, THIRD)]
    log.append(records(1))
    assert signers(log.log.seal(10).note) == [THIRD]


@pytest.mark.parametrize("key", [OTHER, SIGNER])
def test_a_key_that_cannot_follow(log, key):
    """Another log's key, or the one in force, rotates nothing, and the log goes on."""
    write_key(log.directory / NEXT_KEY, key)
    with pytest.raises(UsageError, match="remove"):
        log.look()
    log.restart()
    log.append(records(1))
    assert signers(log.log.seal(10).note) == [SIGNER]


def test_an_old_key_does_not_come_back(log):
    """Nor does a key that the log had before."""
    write_key(log.directory / NEXT_KEY, NEXT)
    log.look()
    log.log.finish(log.log.seal(10))
    log.look()
    write_key(log.directory / NEXT_KEY, SIGNER)
    with pytest.raises(UsageError, match="had this key"):
        log.look()


def test_a_damaged_next_key(log):
    """A next key that is none, or that others may read, keeps no receiver from starting."""
    path = log.directory / NEXT_KEY
    path.write_text("PRIVATE+KEY+")
    log.restart()
    with pytest.raises(UsageError, match="others may read"):
        log.look()
    path.chmod(0o600)
    with pytest.raises(UsageError, match="not an Ed25519 key"):
        log.look()
    log.append(records(1))
    assert signers(log.log.seal(10).note) == [SIGNER]


def test_the_new_key_is_lost(log):
    """Once the log has the rotation, it does not go on without the new key, nor with the old."""
    write_key(log.directory / NEXT_KEY, NEXT)
    log.look()
    (log.directory / NEXT_KEY).unlink()
    with pytest.raises(UsageError, match="restore it from backup"):
        log.restart()
    write_key(log.directory / NEXT_KEY, NEXT)
    log.journal.close()
    log.open()
    log.log.finish(log.log.seal(10))
    log.look()
    (log.directory / LOG_KEY).unlink()  # an old backup comes back
    write_key(log.directory / LOG_KEY, SIGNER)
    with pytest.raises(UsageError, match=f"signs with {SIGNER.name}.*restore it from backup"):
        log.restart()
    log.journal.close()
    (log.directory / LOG_KEY).unlink()
    write_key(log.directory / LOG_KEY, NEXT)
    log.open()


def test_a_writer_rotates_nothing(log):
    """A writer that sends such a notice gets it recorded, and changes no key."""
    log.append(log.written([rotation_notice(SIGNER, NEXT, 1)]))
    assert log.log.keys == ()
    rotations = Rotations({SIGNER.name: (SIGNER.verifier,)})
    sealed = log.log.seal(10)
    assert [list(rotations.add(record, SIGNER.name)) for record in sealed.records] == [[]]
    assert signers(sealed.note) == [SIGNER]


ALL = {SIGNER.name: (SIGNER.verifier, NEXT.verifier, THIRD.verifier)}


def test_rotations_are_checked():
    """Two rotations, one after the other, are as they should be, and say who signs which size."""
    rotations = Rotations(ALL)
    assert list(rotations.add(rotation(index=5), SIGNER.name)) == []
    assert list(rotations.add({"kind": "access", "index": 6}, SIGNER.name)) == []
    assert list(rotations.add(rotation(NEXT, THIRD, index=9), SIGNER.name)) == []
    by_size = [rotations.signs(SIGNER.name, size) for size in (1, 5, 6, 9, 10, 99)]
    keys = [SIGNER, SIGNER, NEXT, NEXT, THIRD, THIRD]
    assert by_size == [key.verifier for key in keys]
    assert rotations.signs("another", 5) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (rotation(OTHER, NEXT), "is not signed by"),
        (rotation(SIGNER, OTHER), "the trust file does not accept"),
        (rotation() | {"details": "{}"}, "malformed"),
        (rotation() | {"details": ""}, "malformed"),
        (rotation(SIGNER, SIGNER), "which the log had before"),
        (rotation(THIRD, NEXT, 7), "the one before it was to"),
    ],
)
def test_wrong_rotations(wrong, said):
    """What is no rotation of this log by both of its keys is told."""
    rotations = Rotations(ALL)
    if wrong.get("index"):
        assert list(rotations.add(rotation(index=3), SIGNER.name)) == []
    assert any(said in text for text in rotations.add(wrong, SIGNER.name))


@given(st.sampled_from(["old", "new", "old_signature", "new_signature"]), st.integers(0, 10**6))
def test_any_changed_character(name, place):
    """No character of a rotation's details can be another."""
    details = json.loads(rotation()["details"])
    value = details[name].rstrip("=")
    place %= len(value) - 1  # the last one of base64 may hold bits that do not count
    changed = "A" if value[place] != "A" else "B"
    details[name] = value[:place] + changed + details[name][place + 1 :]
    wrong = rotation() | {"details": json.dumps(details)}
    assert list(Rotations(ALL).add(wrong, SIGNER.name))


def test_the_text_that_is_signed():
    """It is the one documented, for others to check."""
    old, new = str(SIGNER.verifier), str(NEXT.verifier)
    text = f"authz key rotation v1\n{SIGNER.name}\n{old}\n{new}\n".encode()
    assert rotation_text(SIGNER.name, old, new) == text


def test_the_commands(tmp_path):
    """A key is made once, readable by its owner only; shown without its secret; rotated once at a
    time."""
    path = tmp_path / LOG_KEY
    with world() as ours:

        def keys(*arguments):
            return run([*AUTHZ, "keys", *arguments], ours)

        made = keys("new", "--origin", "test/receiver", "-o", path)
        assert made.returncode == 0, made.stderr
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        secret = path.read_text().strip()
        key = made.stdout.strip()
        assert Verifier.parse(key) == Signer.parse(secret).verifier
        again = keys("new", "--origin", "test/receiver", "-o", path)
        assert (again.returncode, path.read_text().strip()) == (2, secret)
        shown = keys("show", path)
        assert (shown.returncode, shown.stdout.strip(), shown.stderr) == (0, key, "")
        rotated = keys("rotate", "--data-dir", tmp_path, "--json")
        said = json.loads(rotated.stdout)
        following = (tmp_path / NEXT_KEY).read_text().strip()
        assert said["old"] == key
        assert said["key"] == str(Signer.parse(following).verifier)
        twice = keys("rotate", "--data-dir", tmp_path)
        assert twice.returncode == 2
        assert "under way" in twice.stderr
        path.chmod(0o640)
        exposed = keys("show", path)
        assert (exposed.returncode, exposed.stdout.strip()) == (1, key)
        assert "chmod 600" in exposed.stderr
        refused = keys("rotate", "--data-dir", tmp_path)
        assert refused.returncode == 2
        assert "chmod 600" in refused.stderr
    every = [made, again, shown, rotated, twice, exposed, refused]
    for text in (done.stdout + done.stderr for done in every):
        assert secret.split("+", 4)[4] not in text
        assert following.split("+", 4)[4] not in text


def test_checkpoint_of_the_leaf_alone(log):
    """Even the first leaf may be the rotation."""
    write_key(log.directory / NEXT_KEY, NEXT)
    log.look()
    batch = log.log.seal(10)
    assert Checkpoint.parse(batch.note).size == 1
    assert signers(batch.note) == [NEXT]
    assert isinstance(log.log, Log)
