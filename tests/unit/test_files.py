"""Whose a secret file is."""

import os
import tempfile
from pathlib import Path

import pytest

from authz.files import is_open

NOBODY = 65_534
OURS = [(0o600, False), (0o400, False), (0o440, True), (0o620, True), (0o604, True)]
GIVEN = [(0o440, False), (0o640, False), (0o600, False), (0o444, True), (0o660, True)]


@pytest.mark.parametrize(("mode", "told"), OURS)
def test_a_file_of_our_own(tmp_path, mode, told):
    """What we own, nobody else may read."""
    path = tmp_path / "key"
    path.touch()
    path.chmod(mode)
    assert is_open(path) is told


@pytest.mark.parametrize(("mode", "told"), GIVEN)
def test_a_file_that_root_gives_us(mode, told):
    """Systemd's credentials and Kubernetes' secrets are root's, with 0440; all the world may read
    none of them, and nobody but root may write."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be given a file by root")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "key"
        path.touch()
        path.chmod(mode)
        Path(directory).chmod(0o755)
        os.seteuid(NOBODY)
        try:
            assert is_open(path) is told
        finally:
            os.seteuid(0)
