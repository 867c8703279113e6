"""The long forms, in short."""

import asyncio
import os
from random import Random

import pytest

from .away import away
from .kills import soak as kills

SEED = int(os.environ.get("AUTHZ_TEST_SEED", "0")) or Random().randrange(1, 1 << 32)
KILLS = 5
REQUESTS = 12_000


@pytest.mark.thorough
def test_killed_at_random(tmp_path):
    """Receiver and ClickHouse killed at random moments: after each, what was acknowledged is in the
    log, once, the log verifies, and no gap is told that is none."""
    print(f"AUTHZ_TEST_SEED={SEED}")
    total = kills(tmp_path, KILLS, SEED, lambda *_: None)
    print(dict(total))
    assert total["records"] > 100


def test_clickhouse_away_under_load(tmp_path):
    """What comes while ClickHouse is away waits in the journal, in level memory; then it is stored
    in less time than it took to come, and verifies."""
    result = asyncio.run(away(tmp_path, REQUESTS, 1000, fast=True))
    print(f"{REQUESTS} sent in {result.sending:.1f} s, stored in {result.catching_up:.1f} s;"
          f" memory {[size >> 20 for size in result.memory]}, {result.peak >> 20} MB")  # fmt: skip
    assert result.wrong == []
