"""What a release is made of: pinned, licensed, and signed so that a change shows."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from programs import CHECKOUT, program

IMAGE = CHECKOUT / "deploy" / "image"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
WANTED = {
    "requirements.txt": [
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["reports"],
    ],
    "build.txt": PROJECT["build-system"]["requires"],
}


def pins(lock: Path) -> dict[str, str]:
    """Each locked package and its version."""
    found = re.findall(r"^([\w.-]+)==(\S+) \\$", lock.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


@pytest.mark.parametrize("name", WANTED)
def test_every_dependency_is_locked(name):
    """At a version that the project asks for."""
    locked = pins(IMAGE / name)
    for wanted in map(Requirement, WANTED[name]):
        version = locked.get(canonicalize_name(wanted.name))
        assert version is not None, f"{wanted}: not locked; run `make lock`"
        assert wanted.specifier.contains(version), f"{wanted}: {version}; run `make lock`"


@pytest.mark.parametrize("name", WANTED)
def test_nothing_is_locked_without_its_hash(name):
    """No line of a lock file is anything but a pin, a hash of it, or a comment."""
    lines = (IMAGE / name).read_text().splitlines()
    of = ""
    for line in lines:
        if pin := re.fullmatch(r"([\w.-]+)==\S+ \\", line):
            of = pin[1]
        elif re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line):
            assert of
        else:
            of = ""
            assert re.fullmatch(r"\s*#.*", line), line
    assert len(pins(IMAGE / name)) > 3


@pytest.mark.parametrize("name", WANTED)
def test_the_lock_installs(name, tmp_path):
    """uv finds that all of it goes together and needs nothing else, that each has a hash, and that
    there is nothing to be compiled."""
    wheels = ["--no-build", "--python-version", "3.11", "--python-platform", "linux"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--require-hashes"),
            *(*wheels, "--target", tmp_path / "empty", "-r", IMAGE / name),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    installed = set(re.findall(r"^ \+ ([\w.-]+)==", done.stderr, re.MULTILINE))
    assert installed == set(pins(IMAGE / name))


def test_licences_are_those_of_the_lock():
    """The list names what is locked, each package once, and each has a licence that will do."""
    text = (CHECKOUT / "docs" / "licences.md").read_text()
    rows = re.findall(r"^\| ([\w.-]+) \| (\S+) \| (.+) \|$", text, re.MULTILINE)
    [_, *rows] = rows
    told = {canonicalize_name(name): version for name, version, _ in rows}
    assert told == pins(IMAGE / "requirements.txt"), "run `make licences`"
    wanted = re.compile(r"\b(MIT|BSD|Apache|ISC|PSF|Python Software|Mozilla|MPL|LGPL|Lesser)\b")
    assert [row for row in rows if not wanted.search(row[2])] == []


def _blocks() -> list[str]:
    text = (CHECKOUT / "docs" / "releasing.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for block in blocks if "ssh-keygen" in block]


def _sh(block: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    program("ssh-keygen", "openssh-client")
    return subprocess.run(
        ["sh", "-eu", "-c", block], cwd=directory, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A release as the documentation signs it, of stand-ins for its files."""
    directory = tmp_path_factory.mktemp("release")
    (directory / "dist").mkdir()
    (directory / "dist" / "authz-0.1.0-py3-none-any.whl").write_bytes(b"a wheel")
    (directory / "dist" / "authz.cdx.json").write_text("{}")
    done = _sh(_blocks()[0], directory)
    assert done.returncode == 0, done.stderr
    return directory


def test_a_release_is_verified(released):
    """With the files, the signature and the signer's key, the documented commands end with 0."""
    done = _sh(_blocks()[1], released)
    assert done.returncode == 0, done.stderr
    assert "releases@authz" in done.stdout
    assert "authz.cdx.json: OK" in done.stdout


def _another_key(release: Path) -> None:
    """Somebody else signs the list, in the signer's name."""
    (release / "dist" / "SHA256SUMS.sig").unlink()
    (release / "other").mkdir()
    _sh("ssh-keygen -q -t ed25519 -N '' -f other/key", release)
    signed = "ssh-keygen -Y sign -f ../other/key -n authz-release SHA256SUMS"
    assert _sh(signed, release / "dist").returncode == 0


@pytest.mark.parametrize(
    "done_to_it",
    [
        lambda release: (release / "dist" / "authz-0.1.0-py3-none-any.whl").write_bytes(b"another"),
        lambda release: (release / "dist" / "authz.cdx.json").unlink(),
        lambda release: (release / "dist" / "SHA256SUMS").write_text("\n"),
        _another_key,
    ],
    ids=["a file changed", "a file gone", "the list changed", "another key"],
)
def test_a_release_that_was_changed(released, tmp_path, done_to_it):
    """One that is not what was signed, or signed by somebody else, is refused."""
    changed = shutil.copytree(released, tmp_path / "release")
    done_to_it(changed)
    assert _sh(_blocks()[1], changed).returncode != 0
