"""The whole house, broken for a moment."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

pytestmark = [pytest.mark.opa, pytest.mark.alone, pytest.mark.thorough]

SEED = int(os.environ.get("AUTHZ_TEST_SEED", "0")) or Random().randrange(1, 1 << 32)


def test_a_moment(opa):
    """Parts are killed, stopped and frozen, clocks set, disks filled and certificates let run out,
    under load: at the end counts are even and the log verifies."""
    command = [sys.executable, "-m", "tests.faults.soak", "--minutes", "0.1", "--lasting", "1"]
    done = subprocess.run(
        [*command, "--seed", str(SEED)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "even" in done.stdout
