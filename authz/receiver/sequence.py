"""The state of one log: this file owns it, and nothing else changes it.

A record becomes part of the log by these steps, each durable before the next:

1. The journal holds it under its index, in its final form (leaf bytes), with its attachment. From
   here on it is in the log: writers are acknowledged. Found after a crash: it is sealed by the next
   start.
2. A signed checkpoint over it is on disk (``checkpoint``). The leaf hashes are those of what is in
   the journal. Found: the next start seals up to the same size, which gives the same root.
3. Its row is in ClickHouse, then its attachment, then the tiles, then the checkpoint's row; all is
   read back. Found: the next start reads back what is there and inserts what is missing.
4. ``state.json`` says the log is stored up to here: the tree's right edge, each writer's place, the
   last `sealed_at`, who is blocked. Found: the next start goes on from here.
5. The journal is trimmed below that. Found: nothing to do, or a segment to trim again.

A start always runs the same code: read the state, walk the journal from there, seal what was sealed
and not stored, go on. Writers' places and blocks are a fold over the log's records: the state has
them as of its size, and the walk applies each record after that once. So a block is in force, or
lifted, from step 1 on, whatever happens after.

Which key signs is such a fold too: a rotation is a leaf (`authz.keys`), and a checkpoint bears the
signature of the key that is in force after its last leaf. So both keys are needed until step 4 for
that leaf; what was signed before a crash is signed the same after it.
"""

import binascii
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import orjson

from authz.blocks import Standing
from authz.errors import UsageError
from authz.files import replace_file
from authz.journal.chain import join, split
from authz.journal.segments import CorruptJournalError, Journal, Reader
from authz.keys import LOG_KEY, NEXT_KEY
from authz.ledger import (
    Checkpoint,
    NoteError,
    Signer,
    Tile,
    Tree,
    Verifier,
    leaf_hash,
    open_note,
    sign_note,
)
from authz.receiver.recent import MOST, Leaves, Recent
from authz.receiver.state import Place, State, accounted_in, keys_after, place_of
from authz.record import MOST_BYTES, Entry, Record, form, shorten

# Of one batch, attachments included; they are in memory while it is stored.
_BATCH_BYTES: float = 32 << 20
_STORING_SECONDS = 2  # without a batch stored: the store is slow, or away
_READ_BYTES, _READ_ROWS = 4 << 20, 10_000


@dataclass(frozen=True, slots=True)
class _Framed:
    """What becomes true of the log once what was framed last is durable."""

    sealed: tuple[int, int]  # as `Log._sealed`
    places: dict[str, Place]
    blocks: Standing
    keys: tuple[str, ...]
    leaves: Leaves | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Sealed, and to be stored: records from index `first` and their leaves, those of them that
    have attachments, the tiles they touched, the checkpoint."""

    first: int
    records: list[Record]
    leaves: list[bytes]
    attachments: list[Entry]
    tiles: list[Tile]
    note: str
    state: State


class Log:
    """One log. `frame` and `committed` run in the journal's thread, `seal` and `finish` in
    another; the two share the journal and what is recent, which are safe for that."""

    def __init__(
        self, directory: Path, journal: Journal, signer: Signer, following: Signer | None = None
    ) -> None:
        """`signer` is the log's key, and `following` the one that is to follow it, or has already
        in the part that is not stored yet."""
        self._directory = directory
        self._journal = journal
        self._signer = signer
        self._signers = {str(one.verifier): one for one in (signer, following) if one}
        self._mutex = threading.Lock()
        self.stored = self._load_state()
        self.keys = self.stored.keys  # as `State.keys`, with what is in the journal
        self._note = self._load_checkpoint()
        newest = Checkpoint.parse(self._note).size if self._note else 0
        self.stored_note = self._note if newest == self.stored.tree.size else ""
        """The newest checkpoint that is stored, signed; after a crash perhaps none is known."""
        if journal.next < self.stored.tree.size:
            raise CorruptJournalError(
                f"{directory}: {self.stored.tree.size} records are stored, but the journal ends at"
                f" {journal.next}; restore the directory from the disk it was on"
            )
        # What the journal holds beyond the stored part tells where writers and clock stand.
        self.writers = dict(self.stored.writers)
        self.privacy_key_id = self.stored.privacy_key_id
        self._sealed = self.stored.sealed_at, 0  # the last leaf's time; when, on a stopwatch
        self.blocks = self.stored.blocks  # never changed, only replaced as a whole
        self._walk(journal.reader(self.stored.tree.size))
        self._want_keys()
        self._sealed = self._sealed[0], time.monotonic_ns()
        self._framed = _Framed(self._sealed, {}, self.blocks, self.keys)
        self._recent = Recent()
        self._stored_at = -math.inf  # on a stopwatch: when a batch was, last
        self._reader: Reader | None = None

    @property
    def origin(self) -> str:
        return self._signer.name

    @property
    def signer(self) -> Signer:
        """Who signs what is in the journal now."""
        return self._signer_of(self.keys)

    @property
    def verifiers(self) -> list[Verifier]:
        """The log's keys, oldest first: those of the past, the one in force, one that is to follow
        it."""
        named = dict.fromkeys([*self.keys, *self._signers])
        return [Verifier.parse(key) for key in named]

    def expect(self, following: Signer) -> None:
        """`following` signs once the log has the rotation to it."""
        self._signers = {**self._signers, str(following.verifier): following}

    @property
    def sealed(self) -> Checkpoint:
        """The newest checkpoint that was signed: nothing beyond it has left this directory."""
        if self._note:
            return Checkpoint.parse(self._note)
        return Checkpoint(self.origin, self.stored.tree.size, self.stored.tree.root())

    def now_us(self) -> int:
        """The log's clock, microseconds since the epoch. It never goes back: where the machine's
        was set back, it goes on at half its pace until that has caught up. (If it stood still, no
        interval of the log's account would end until then, and no gap be told.)"""
        sealed_at, when = self._sealed
        return max(time.time_ns() // 1000, sealed_at + (time.monotonic_ns() - when) // 2000)

    # Step 1: into the journal (its thread).

    def frame(self, items: Sequence[Sequence[Entry]], first: int) -> list[bytes]:
        """The payloads of groups of records (each of one writer, and as `clean` leaves them), the
        first at index `first`, sealed now by the log's clock."""
        now = self.now_us()
        sealed = now, time.monotonic_ns()
        origin = self._signer.name
        places: dict[str, Place] = {}
        told: list[Record] = []  # what may be a block, or a finding
        payloads, records, leaves, hashes = [], [], [], []
        attachments: dict[int, Entry] = {}
        index = first
        for group in items:
            newest = group[-1][0]
            if "writer_seq" in newest or newest.get("kind") != "access":  # not Envoy's
                told += [record for record, _ in group]
            if place := place_of(newest):
                places[str(newest["writer"])] = place
            for record, attachment in group:
                record["origin"] = origin
                if index:
                    record["index"] = index
                record["sealed_at"] = now
                leaf = form(record)
                if len(leaf) > MOST_BYTES:  # none of a writer's: `check_link`
                    shorten(record, MOST_BYTES)
                    leaf = form(record)
                if attachment:
                    attachments[index] = record, attachment
                payloads.append(join(leaf, attachment))
                records.append(record)
                leaves.append(leaf)
                hashes.append(leaf_hash(leaf))
                index += 1
        size = sum(map(len, payloads))
        held = Leaves(first, records, leaves, hashes, attachments, size)
        blocks, keys = self.blocks.after(told), keys_after(self.keys, told)
        self._framed = _Framed(sealed, places, blocks, keys, held)
        return payloads

    def committed(self) -> None:
        framed = self._framed
        self._sealed, self.blocks, self.keys = framed.sealed, framed.blocks, framed.keys
        self.writers.update(framed.places)
        if framed.leaves:
            self._recent.add(framed.leaves)

    # Steps 2 to 5: sealed and stored.

    def waiting(self) -> int:
        """How many records are in the journal and not yet stored."""
        return self._journal.next - self.stored.tree.size

    @property
    def pressed(self) -> bool:
        """Whether storing goes on, but falls behind: what comes then had better wait, for it costs
        more once it must be read from the journal again."""
        stored = time.monotonic() - self._stored_at < _STORING_SECONDS
        return stored and self.waiting() > MOST * 3 // 4

    def seal(self, limit: int) -> Batch | None:
        """The next batch, under a signed checkpoint that is on disk; None if there is nothing.

        Call again only after `finish`.
        """
        first = self.stored.tree.size
        sealed = Checkpoint.parse(self._note).size if self._note else 0
        max_bytes = _BATCH_BYTES
        if sealed > first:
            limit, max_bytes = sealed - first, math.inf  # it is finished as it was begun
        parts = self._take(first, limit, max_bytes)
        if not parts:
            return None
        tree = self.stored.tree.copy()
        tiles = tree.append(chain.from_iterable(part.hashes for part in parts))
        records = list(chain.from_iterable(part.records for part in parts))
        state = self._state_after(tree, records)
        text = Checkpoint(self.origin, tree.size, tree.root()).text()
        if sealed <= first:
            note = sign_note(text, self._signer_of(state.keys))
            replace_file(self._directory / "checkpoint", note.encode(), 0o644)
            self._note = note
        elif self._note.rpartition("\n\n")[0] + "\n" != text:
            raise CorruptJournalError(
                f"{self._directory}: the journal does not hold what its checkpoint was signed over;"
                " restore both from the disk they were on"
            )
        leaves = list(chain.from_iterable(part.forms for part in parts))
        carried = list(chain.from_iterable(part.attachments.values() for part in parts))
        tiles += tree.partial_tiles()
        return Batch(first, records, leaves, carried, tiles, self._note, state)

    def finish(self, batch: Batch) -> None:
        """`batch` is in ClickHouse and read back: remember it, and let the journal forget."""
        with self._mutex:
            batch.state.privacy_key_id = self.privacy_key_id
            replace_file(self._directory / "state.json", batch.state.to_json())
            self.stored, self.stored_note = batch.state, batch.note
        self._stored_at = time.monotonic()
        self._journal.trim(batch.state.tree.size)

    def pin_privacy_key(self, key_id: str) -> bool:
        """Whether `key_id` is this log's; the first one seen is, for good."""
        with self._mutex:
            if not self.privacy_key_id:
                self.privacy_key_id = key_id
                self.stored.privacy_key_id = key_id
                replace_file(self._directory / "state.json", self.stored.to_json())
            return self.privacy_key_id == key_id

    def _take(self, first: int, limit: float, max_bytes: float) -> list[Leaves]:
        """Up to `limit` leaves from index `first` on, or until `max_bytes` are reached: as they are
        in memory, or from the journal."""
        parts: list[Leaves] = []
        while limit > 0 and max_bytes > 0:
            begin = self._recent.begin(first)
            if begin == first:
                more = self._recent.take(first, limit, max_bytes)
            else:
                more = self._read(
                    first, min(limit, math.inf if begin is None else begin - first), max_bytes
                )
            if not more:
                break
            parts += more
            first = more[-1].end
            limit -= sum(len(part.records) for part in more)
            max_bytes -= sum(part.size for part in more)
        return parts

    def _read(self, first: int, limit: float, max_bytes: float) -> list[Leaves]:
        """The same, from the journal."""
        if self._reader is None or self._reader.number != first:
            self.close()
            self._reader = self._journal.reader(first)
        parts: list[Leaves] = []
        while limit and max_bytes > 0:
            payloads = self._reader.take(int(min(limit, _READ_ROWS)), _READ_BYTES)
            if not payloads:
                break
            leaves, carried = zip(*map(split, payloads), strict=True)
            records: list[Record] = [orjson.loads(leaf) for leaf in leaves]
            entries = enumerate(zip(records, carried, strict=True), first)
            attachments = {index: entry for index, entry in entries if entry[1]}
            hashes, size = [*map(leaf_hash, leaves)], sum(map(len, payloads))
            parts.append(Leaves(first, records, leaves, hashes, attachments, size))
            first += len(payloads)
            limit -= len(payloads)
            max_bytes -= size
        return parts

    def _state_after(self, tree: Tree, records: Sequence[Record]) -> State:
        newest = {str(record["writer"]): record for record in records if "writer_seq" in record}
        places = {name: place for name, record in newest.items() if (place := place_of(record))}
        sealed_at = records[-1]["sealed_at"]
        assert isinstance(sealed_at, int)
        writers = {**self.stored.writers, **places}
        notices = [record for record in records if record.get("kind") == "notice"]
        blocks = self.stored.blocks.after(records)
        accounted = max(map(accounted_in, notices), default=0)
        accounted = max(accounted, self.stored.accounted)
        keys = keys_after(self.stored.keys, notices)
        follows = self.stored.follows
        return State(
            tree, sealed_at, writers, self.privacy_key_id, blocks, accounted, keys, follows
        )  # fmt: skip

    def _signer_of(self, keys: Sequence[str]) -> Signer:
        return self._signers[keys[-1]] if keys else self._signer

    def _want_keys(self) -> None:
        """All that will sign what is not stored yet are here. Raises `UsageError`."""
        for key in self.keys[max(len(self.stored.keys) - 1, 0) :]:
            if key not in self._signers:
                raise UsageError(
                    f"{self._directory}: since its rotation the log signs with {key}, which is in"
                    f" neither {LOG_KEY} nor {NEXT_KEY}; restore it from backup"
                )

    def close(self) -> None:
        """Let go of the journal's files."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _walk(self, reader: Reader) -> None:
        while payloads := reader.take(1000):
            records: list[Record] = [orjson.loads(split(payload)[0]) for payload in payloads]
            self.blocks = self.blocks.after(records)
            self.keys = keys_after(self.keys, records)
            for record in records:
                place = place_of(record)
                if place:
                    self.writers[str(record["writer"])] = place
                sealed_at = record["sealed_at"]
                assert isinstance(sealed_at, int)
                self._sealed = sealed_at, 0
        reader.close()

    def _load_state(self) -> State:
        path = self._directory / "state.json"
        try:
            return State.from_json(path.read_bytes())
        except FileNotFoundError:
            return State()
        except (AttributeError, KeyError, TypeError, ValueError, binascii.Error, NoteError):
            raise UsageError(
                f"{path}: not this program's; restore it from the disk it was on"
            ) from None

    def _load_checkpoint(self) -> str:
        path = self._directory / "checkpoint"
        try:
            note = path.read_text()
            text, _ = open_note(note, self.verifiers)
            checkpoint = Checkpoint.parse(text)
        except FileNotFoundError:
            return ""
        except (NoteError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: {error}; is this the log's own key?") from None
        if not self.stored.tree.size <= checkpoint.size <= self._journal.next:
            raise CorruptJournalError(
                f"{self._directory}: a checkpoint over {checkpoint.size} records was signed, but"
                f" the journal ends at {self._journal.next} and {self.stored.tree.size} are stored;"
                " restore the directory from the disk it was on"
            )
        return note
