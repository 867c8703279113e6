"""What a proof costs: its checkpoint and tiles out of ClickHouse, its hashes, its verification.

The tiles of a log of random leaf hashes are made by `Tree` and stored as the receiver stores them.
A far larger log is simulated: of it there are only the tiles that its proofs need, which fit each
other. Must: 20 ms out of 10 million records, under 2 KB without the record. Aim: 5 ms.
"""

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clickhouse_driver import Client
from rich.console import Console
from rich.table import Table

from authz.ledger import (
    HASH_BYTES,
    TILE_WIDTH,
    Checkpoint,
    Place,
    Signer,
    TlogProof,
    Tree,
    prove_inclusion,
    root_at,
    sign_note,
    tree_hash,
    verify_inclusion,
)
from authz.store import embedded, migrations
from authz.store.client import connect
from authz.store.tiles import Tiles, best_checkpoint

_CHUNK = 10_000  # as the receiver stores them, at most
_SIMULATED = 100_000_000
_SIGNER = Signer("bench/receiver", bytes(32))

Hashes = dict[tuple[int, int], list[bytes]]


@dataclass(frozen=True)
class Log:
    """A log whose tiles are in ClickHouse; of these leaves proofs are asked for."""

    name: str
    size: int
    indexes: Sequence[int]


def random_hashes(count: int) -> list[bytes]:
    data = os.urandom(count * HASH_BYTES)
    return [data[n : n + HASH_BYTES] for n in range(0, len(data), HASH_BYTES)]


def store(client: Client, origin: str, tiles: Iterator[tuple[int, int, int, bytes]]) -> None:
    rows = [(origin, *tile) for tile in tiles]
    client.execute("INSERT INTO tiles (origin, level, index, width, data) VALUES", rows)


def sign(client: Client, origin: str, size: int, root: bytes) -> None:
    note = sign_note(Checkpoint(origin, size, root).text(), _SIGNER)
    row = [(origin, size, note)]
    client.execute("INSERT INTO checkpoints (origin, size, note) VALUES", row)


def real(client: Client, size: int, proofs: int) -> Log:
    """A log of `size` leaves, all its tiles stored, batch by batch with a checkpoint each."""
    tree, origin = Tree(), "bench/real"
    while tree.size < size:
        done = tree.append(random_hashes(min(_CHUNK, size - tree.size)))
        done += tree.partial_tiles()
        store(client, origin, ((t.level, t.index, len(t.hashes), t.data) for t in done))
        sign(client, origin, tree.size, tree.root())
    return Log(origin, size, [random.randrange(size) for _ in range(proofs)])


def simulated(client: Client, size: int, proofs: int) -> Log:
    """A log of which only the tiles are there that some of its proofs need."""
    origin = "bench/simulated"
    indexes = [random.randrange(size) for _ in range(min(proofs, 50))]
    needed: dict[tuple[int, int], int] = {}

    def note(places: Sequence[Place]) -> list[bytes]:
        needed.update({(place.level, place.index): place.width for place in places})
        return [bytes(place.width * HASH_BYTES) for place in places]

    root_at(size, note)
    for index in indexes:
        prove_inclusion(index, size, note)
    tiles: Hashes = {place: random_hashes(width) for place, width in needed.items()}
    for (level, index), hashes in sorted(tiles.items()):  # lower levels first
        above = tiles.get((level + 1, index // TILE_WIDTH), [])
        if len(hashes) == TILE_WIDTH and index % TILE_WIDTH < len(above):
            above[index % TILE_WIDTH] = tree_hash(hashes)
    data = {place: b"".join(hashes) for place, hashes in tiles.items()}
    store(client, origin, ((*at, len(one) // HASH_BYTES, one) for at, one in data.items()))
    root = root_at(size, lambda places: [data[place.level, place.index] for place in places])
    sign(client, origin, size, root)
    return Log(origin, size, indexes * (proofs // len(indexes) or 1))


@dataclass
class Cost:
    """Of one proof: milliseconds of its parts, and bytes without the record."""

    checkpoint: float
    tiles: float
    hashing: float
    size: int

    @property
    def whole(self) -> float:
        return self.checkpoint + self.tiles + self.hashing


def prove(client: Client, log: Log, index: int) -> Cost:
    """As ``authz prove`` does it, once it has the leaf; its hash is in the tile that is read."""
    read, waited = Tiles(client, log.name), 0.0
    leaf = b""

    def timed(places: Sequence[Place]) -> list[bytes]:
        nonlocal waited, leaf
        begun = time.perf_counter()
        data = read(places)
        waited += time.perf_counter() - begun
        at = [(place.level, place.index) for place in places].index((0, index // TILE_WIDTH))
        leaf = data[at][index % TILE_WIDTH * HASH_BYTES :][:HASH_BYTES]
        return data

    begun = time.perf_counter()
    found = best_checkpoint(client, log.name, index)
    assert found
    have = time.perf_counter()
    proof = TlogProof(index, (), found[1])
    checkpoint = proof.claimed
    hashes = prove_inclusion(index, checkpoint.size, timed)
    verify_inclusion(leaf, index, checkpoint.size, hashes, checkpoint.root)
    proof = TlogProof(index, tuple(hashes), found[1])
    size = len(str(proof).encode())
    done = time.perf_counter()
    return Cost((have - begun) * 1e3, waited * 1e3, (done - have - waited) * 1e3, size)


def floor(client: Client, tiles: int) -> float:
    """Milliseconds of two empty queries, and of every hash that so many tiles can need."""
    times = []
    for _ in range(50):
        begun = time.perf_counter()
        client.execute("SELECT 1")
        client.execute("SELECT 1")
        times.append(time.perf_counter() - begun)
    one = random_hashes(TILE_WIDTH)
    begun = time.perf_counter()
    for _ in range(tiles):
        tree_hash(one)
    return (statistics.median(times) + time.perf_counter() - begun) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--proofs", type=int, default=200)
    options = parser.parse_args()
    console = Console(width=110)
    table = Table(title="one proof; milliseconds, medians")
    names = "records", "p50", "p99", "checkpoint", "tiles", "hashing", "floor", "ratio", "bytes"
    for name in names:
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as directory:
        server = embedded.start(Path(directory))
        try:
            with connect(server.store) as client:
                migrations.migrate(client)
                begun = time.monotonic()
                logs = [real(client, options.records, options.proofs)]
                console.print(f"tiles made in {time.monotonic() - begun:.0f} s", style="dim")
                logs.append(simulated(client, _SIMULATED, options.proofs))
                for log in logs:
                    for index in log.indexes[:10]:
                        prove(client, log, index)
                    costs = [prove(client, log, index) for index in log.indexes]
                    whole = sorted(cost.whole for cost in costs)
                    least = floor(client, (log.size.bit_length() + 7) // 8)
                    p50 = statistics.median(whole)
                    parts = [
                        statistics.median(getattr(cost, part) for cost in costs)
                        for part in ("checkpoint", "tiles", "hashing")
                    ]
                    figures = (p50, whole[len(whole) * 99 // 100], *parts, least)
                    table.add_row(
                        f"{log.size:,}", *(f"{one:.1f}" for one in figures),
                        f"{p50 / least:.1f}", f"{max(cost.size for cost in costs):,}",
                    )  # fmt: skip
        finally:
            server.stop()
    console.print(table)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
