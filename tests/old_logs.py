"""Logs that are years old: sealed under a clock of the test's own; and what is left of them."""

import datetime as dt
import hashlib
import time
from types import SimpleNamespace

from logs import SIGNER, TestLog

from authz.cli.expire import Order, expire
from authz.ledger import TILE_WIDTH, Place, leaf_hash, tree_hash
from authz.receiver import sequence
from authz.record import canonical
from authz.retention import SIX_YEARS, Spans, expired_notice
from authz.store import checkpoints, rows
from authz.store import retention as store
from authz.store.tiles import Tiles
from authz.verify.expiry import Expiries

PATIENTS = ["k.ann", "k.bob", "k.cyd"]
PEOPLE = ["dr.alder", "dr.elm", "n.hazel"]


def us(*day):
    return int(dt.datetime(*day, tzinfo=dt.UTC).timestamp()) * 1_000_000


NOW = us(2026, 11, 25)
# Two of them expire by November 2026, and of the two after that one by December.
TIMES = [us(2019, 3, 10), us(2020, 10, 20), us(2020, 11, 3), us(2022, 1, 1), us(2026, 11, 20)]


class Clock:
    """Stands for the receiver's clock while a log is written."""

    def __init__(self, monkeypatch):
        self.now_us = TIMES[0]
        told = SimpleNamespace(
            time_ns=lambda: self.now_us * 1000,
            monotonic=time.monotonic,
            monotonic_ns=time.monotonic_ns,
        )
        monkeypatch.setattr(sequence, "time", told)


class OldLog(TestLog):
    """Requests of each of `TIMES`, each of them one batch."""

    def __init__(self, directory, store, clock, signer=SIGNER):
        super().__init__(directory, store, signer=signer)
        self.clock = clock
        self.number = 0

    def fill(self, each=20, times=TIMES):
        self.clock.now_us = times[0]
        self.append(self.written([self.identity.start_notice(times[0], "1")]))
        for at in times:
            self.clock.now_us = at
            entries = []
            for minute in range(each):
                entries += self.request(at + minute * 60_000_000)
            self.append_entries(entries)
            self.append([{"kind": "notice", "event": "receiver_started", "time": at}])
            self.seal()

    def request(self, at):
        """A decision, its access, and its answer's disclosure; sometimes a sealed input."""
        n, self.number = self.number, self.number + 1
        person, patient = PEOPLE[n % 3], PATIENTS[n % 2]
        decision = {
            "kind": "decision", "time": at, "decision_id": f"d{self.signer.name}-{n:06}",
            "subject": person, "allowed": True, "enforced": True,
        }  # fmt: skip
        access = decision | {"kind": "access", "writer": "envoy:e", "upstream": "10.0.0.1:80"}
        answer = {"kind": "disclosure", "time": at, "decision_id": decision["decision_id"]}
        ciphertext = b""
        if n % 5 == 0:
            ciphertext = f"0123abcd.sealed {n}".encode()
            decision["sealed"] = hashlib.sha256(ciphertext).hexdigest()
        told = self.written_entries([
            (decision, ciphertext), (answer | {"patients": [patient], "complete": True}, b"")
        ])  # fmt: skip
        return [*told, (access, b"")]

    def tell(self, *records, at=NOW):
        """`records` as a command's, stored."""
        self.clock.now_us = max(at, self.clock.now_us)
        self.append(self.written(list(records)))
        batch = self.seal()
        return SimpleNamespace(
            origin=self.signer.name, writer=self.identity.writer, seq=self.chain.place[0],
            end=batch.first + len(batch.records),
        )  # fmt: skip

    def told(self, at=NOW):
        """What `expire` tells by."""

        def tell(expiries):
            signed = [expiry.signed(self.identity.signer) for expiry in expiries]
            return self.tell(*(expired_notice(one, at) for one in signed), at=at)

        return tell


class Silent:
    """Hears of no progress."""

    def begin(self, what, total=None): ...
    def advance(self, count): ...


def order(rule=SIX_YEARS, now=NOW, sealed=None, **more):
    sealed = sealed or rule
    return Order(rule, rule.before(now), sealed, sealed.before(now), "officer", **more)


def apply(log, asked=None, now=NOW, tell=None, client=None):
    return expire(client or log.client, asked or order(now=now), tell or log.told(now), Silent())


def left(client, origin=SIGNER.name):
    """Which of a log's records are there."""
    query = "SELECT DISTINCT index FROM audit_log WHERE origin = %(origin)s"
    return {index for (index,) in client.execute(query, {"origin": origin})}


def size_of(client, origin=SIGNER.name):
    return checkpoints.sizes(client)[origin]


def records(client, origin=SIGNER.name):
    return list(rows.select(client, "origin = %(origin)s", {"origin": origin}))


def hashes(client, origin=SIGNER.name):
    """The leaf hashes that the tiles have."""
    count = size_of(client, origin) // TILE_WIDTH + 1
    data = b"".join(Tiles(client, origin)([Place(0, number) for number in range(count)]))
    return [data[n : n + 32] for n in range(0, len(data), 32)]


def checked(client, *origins, writers=None):
    """Every record that is there is what was sealed, what is missing may be, and no notice is
    wrong: as a verifier sees it that has the tiles under a signed root. Returns the expiries."""
    origins = origins or (SIGNER.name,)
    expiries = Expiries(store.read_notices(client), writers)
    leaves = {origin: hashes(client, origin) for origin in origins}
    for origin in origins:
        for record in records(client, origin):
            assert leaf_hash(canonical(record)) == leaves[origin][record.get("index", 0)]
            expiries.confirm(record, origin)
        there = Spans.of((index, index + 1) for index in left(client, origin))
        missing = Spans.of([(0, size_of(client, origin))]) - there
        assert not missing - expiries.absent(origin), missing

    def root_at(origin, size):
        known = leaves.get(origin, [])
        return tree_hash(known[:size]) if size <= len(known) else None

    assert list(expiries.findings(root_at)) == []
    return expiries
