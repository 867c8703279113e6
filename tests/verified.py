"""A small log as `authz verify` reads it: how it is made, tampered with and found out."""

import base64
import hashlib
import itertools
import time

import orjson
from logs import SIGNER, TRUST

from authz.journal.chain import chain_hash, head_text, policy_notice
from authz.ledger import Checkpoint, Tree, leaf_hash, sign_note, tree_hash
from authz.record import attachment_hash, canonical, form
from authz.store import rows
from authz.verify import verify_store

BATCHES = (1, 255, 44, 300, 100)
SIZE = sum(BATCHES)
ORIGIN = SIGNER.name
TABLES = ("audit_log", "tiles", "checkpoints", "policies", "sealed_originals")
CARRIED = {hashlib.sha256(text).hexdigest(): text for text in (b"0123abcd.sealed", b"package a")}
SEALED, REVISION = CARRIED


def exchange(number, now):
    """A decision and its access."""
    decision = {
        "kind": "decision",
        "time": now + number,
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


def fill(log, spoil=None, begin=lambda _number: None):
    """`SIZE` records of a writer with its signed heads, and of Envoy, in `BATCHES`. `spoil` does
    to the records what a dishonest receiver could; `begin` is called before each batch."""
    now = time.time_ns() // 1000
    mine = [log.identity.start_notice(now, "1")]
    theirs, number = [], 0
    payloads = []
    while len(mine) + len(theirs) < SIZE:
        decision, access = exchange(number, now)
        mine.append(decision | ({"sealed": SEALED} if number in (50, 150) else {}))
        theirs.append(access)
        number += 1
        if number % 40 == 0:
            payloads += written(log, mine)
            # Others came in between: a head is seldom that of the record just before.
            seq, head = log.chain.place
            payloads += written(log, [policy_notice(now, REVISION)[0]])
            mine = [log.identity.head_notice(now, seq, head)]
            theirs = theirs[:-2]
            payloads += theirs
            theirs = []
            if len(payloads) > SIZE:
                break
    payloads += written(log, mine) + theirs
    if spoil:
        payloads = spoil(payloads)
    payloads = payloads[:SIZE]
    for number, size in enumerate(BATCHES):
        begin(number)
        group, payloads = payloads[:size], payloads[size:]
        for record in group:
            log.append_entries([(dict(record), CARRIED.get(attachment_hash(record), b""))])
        log.seal()


def reset(client):
    """Make the copy what it was: of its tables those whose parts are others now."""
    parts = _parts(client)
    for table in TABLES:
        if table not in _reset or parts.get(table) != _reset[table]:
            client.execute(f"TRUNCATE TABLE {table}")
            client.execute(f"INSERT INTO {table} SELECT * FROM verify_base.{table}")
    _reset.update(_parts(client))


_reset = {}


def _parts(client):
    return dict(
        client.execute(
            "SELECT table, arraySort(groupArray(name)) FROM system.parts"
            " WHERE active AND database = currentDatabase() GROUP BY table"
        )
    )


def findings(client, state=None, trust=TRUST):
    report = verify_store(client, trust, state)
    assert report.verified == (not report.findings)
    return report.findings


def found(client, state=None):
    """The findings as (kind, first, last)."""
    return [(one.kind, one.first, one.last) for one in findings(client, state)]


def found_in(client, trust):
    """Those of several logs, each under its log."""
    return sorted(
        (one.origin, one.kind, one.first, one.last) for one in findings(client, None, trust)
    )


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


def tiles_of_base(client, index):
    [(data,)] = client.execute(
        "SELECT data FROM verify_base.tiles WHERE level = 0 AND index = %(index)s"
        " ORDER BY width DESC LIMIT 1",
        {"index": index},
        settings={"strings_as_bytes": True},
    )
    return data


def forge_tiles(client, records=None):
    """The tiles that belong to the rows as they are now, or to `records`."""
    tree = Tree()
    forged = tree.append(leaf_hash(canonical(record)) for record in records or all_records(client))
    client.execute("TRUNCATE TABLE tiles")
    client.execute(
        "INSERT INTO tiles (origin, level, index, width, data) VALUES",
        [
            (ORIGIN, tile.level, tile.index, len(tile.hashes), tile.data)
            for tile in (*forged, *tree.partial_tiles())
        ],
    )


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


SIZES = tuple(itertools.accumulate(BATCHES))


def resealed(client, records, sizes=SIZES):
    """The whole log made anew from `records`, as whoever has the log's key can."""
    replace(client, records)
    forge_tiles(client, records)
    client.execute("TRUNCATE TABLE checkpoints")
    for size in sizes:
        checkpoint(client, size, root_at(client, size))
