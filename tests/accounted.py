"""A receiver's log that tells its account of itself, and traffic for it."""

import orjson

from authz.receiver.accounts import Accounts
from authz.reconcile import RECONCILED
from authz.verify.accounts import Accounts as Verified

SECOND = 1_000_000
SHOWN = {"discloses": True, "status": 200}  # a request whose answer Envoy shows
LIMITS = {"interval_seconds": 10, "grace_seconds": 5, "patience_seconds": 60}


def decision(number, *, allowed=True, **more):
    record = {"kind": "decision", "decision_id": f"d{number}", "enforced": True, "writer": "w",
              "writer_seq": 1, "request_id": f"r{number}"}  # fmt: skip
    return record | ({"allowed": True} if allowed else {}) | more


def access(number, *, allowed=True, **more):
    record = decision(number, allowed=allowed) | {"kind": "access", "writer": "envoy:e"}
    del record["writer_seq"]
    return record | ({"upstream": "10.0.0.1:80"} if allowed else {}) | more


def ended(number):
    record = access(number, allowed=False)
    del record["decision_id"]
    return record


def disclosure(number, *, part=1, **more):
    """Of an answer's patients; in full unless `more` says why not."""
    told = {"kind": "disclosure", "decision_id": f"d{number}", "writer": "w", "writer_seq": 1,
            "details": f'{{"part":{part},"parts":2}}', **more}  # fmt: skip
    return told if "reason_code" in more else {**told, "complete": True}


class Database:
    """What ClickHouse would answer, from the records themselves."""

    def __init__(self, logs):
        self.logs = logs

    def search(self, decision_ids, since_us):
        ids = set(decision_ids)
        return [
            record
            for log in self.logs.values()
            for record in log
            if record["kind"] in RECONCILED and record.get("decision_id") in ids
        ]

    def newest(self, writers):
        return {}


class Log:
    """One receiver's log, told and counted as time goes on."""

    def __init__(self, origin="a", logs=None, before=()):
        """`before`: records that are older than the log's accounts."""
        self.origin = origin
        self.records = []
        self.first = 0
        self.now = 100 * SECOND
        self.logs = {} if logs is None else logs
        self.logs[origin] = self.records
        self.under_way = {}
        self.start()
        self.append(*before)
        self.first = len(before)
        self.start()

    def start(self, unstored=0):
        """As after a crash: from what the log says, and a state that is older than the last
        `unstored` summaries."""
        told = [orjson.loads(one["details"]) for one in self.notices("interval_summary")]
        # Of what is durable, the last may not have been stored when it crashed.
        accounted = max([d["end"] for d in told[: len(told) - unstored]], default=self.first)
        self.accounts = Accounts(
            self.origin, accounted, **LIMITS, under_way=self.under_way, started_us=0
        )
        carried = {one for r in self.notices("interval_summary") for one in r.get("records", [])}
        carried -= {one for r in self.notices("gap") for one in r.get("records", [])}
        ended_ = {r.get("decision_id") for r in self.records if r["kind"] == "access"}
        open_ = [r for r in self.records if r["kind"] == "decision"
                 and r["decision_id"] in carried - ended_]  # fmt: skip
        self.accounts.restore(
            [(d["first"], d["end"], d["until"], d["as_of"]) for d in told], open_, {}, ()
        )
        self.accounts.add(self.records[self.accounts.next :])

    def notices(self, event):
        return [record for record in self.records if record.get("event") == event]

    def summaries(self):
        return [(one["index"], one["details"]) for one in self.notices("interval_summary")]

    def append(self, *records):
        for told in records:
            place = {"origin": self.origin, "index": len(self.records), "sealed_at": self.now}
            self.records.append({**told, **place})
            self.accounts.add(self.records[-1:])

    def tick(self, seconds):
        self.now += int(seconds * SECOND)
        while told := self.accounts.close(self.now, Database(self.logs)):
            self.append(*told)

    def told(self):
        """Gaps and closed gaps by kind, and the sum of the summaries."""
        gaps, closed, sums = {}, {}, {}
        for record in self.records:
            details = orjson.loads(record["details"]) if "details" in record else {}
            if record.get("event") in ("gap", "gap_closed"):
                into = gaps if record["event"] == "gap" else closed
                into[record["rule"]] = into.get(record["rule"], 0) + details["count"]
            elif record.get("event") == "interval_summary":
                for name, value in details.items():
                    if isinstance(value, int):
                        sums[name] = sums.get(name, 0) + value
        return gaps, closed, sums


def verified(*logs):
    """What a verifier finds wrong with the summaries, and its own count."""
    found = Verified({log.origin: log.summaries() for log in logs}, LIMITS["grace_seconds"])
    wrong = []
    merged = sorted((r for log in logs for r in log.records), key=lambda r: r["sealed_at"])
    for record in merged:
        wrong += [(record["index"], text) for text in found.add(record, record["origin"])]
    return wrong, found.finish()


def shown(random, both):
    """The same, on a route whose answers Envoy shows: some with one disclosure, some with more or
    none."""
    answers = [{**one, **SHOWN} for one in both]
    number = number_of(both)
    kind = random.random()
    told = [disclosure(number), disclosure(number, part=2)]
    if kind < 0.2:
        told = []
    elif kind < 0.4:
        told = [disclosure(number, reason_code="cut")]
    return [*answers, *told]


def disturbed(random, log, both):
    """What becomes of the two accounts of a request."""
    kind = random.random()
    if kind < 0.1:
        return both[:1]
    if kind < 0.2:
        return [both[0], ended(number_of(both)) | {"request_id": both[0]["request_id"]}]
    if kind < 0.25:
        return both[1:]
    if kind < 0.3:
        again = {**both[0], "allowed": False, "reason_code": "client_gone"}
        return [both[0], {k: v for k, v in again.items() if k != "allowed"}, both[1]]
    if kind < 0.35:
        log.under_way[both[0]["decision_id"]] = log.now
    return both


def number_of(both):
    return both[0]["decision_id"][1:]


def traffic(random, log, restarts):
    """Some time of a log's life, with every disturbance."""
    late, number = [], 0
    for _ in range(random.randint(1, 60)):
        for _ in range(random.randint(0, 4)):
            number += 1
            allowed = random.random() < 0.8
            ids = {"request_id": f"r{random.randint(0, 5)}"} if random.random() < 0.3 else {}
            both = [
                decision(number, allowed=allowed, **ids),
                access(number, allowed=allowed, **ids),
            ]
            both = disturbed(random, log, both)
            if random.random() < 0.5:
                both = shown(random, both)
            if random.random() < 0.3:
                random.shuffle(both)
            for record in both:
                if random.random() < 0.6:
                    log.append(record)
                else:
                    late.append((log.now + random.randint(0, 30) * SECOND, record))
        log.tick(random.choice((0, 0.5, 1, 3, 12)))
        for due, record in [one for one in late if one[0] <= log.now]:
            late.remove((due, record))
            log.append(record)
        if restarts and random.random() < 0.15:
            log.start(random.choice((0, 1)))
    for _, record in late:
        log.append(record)
    for _ in range(60):
        log.tick(1)
