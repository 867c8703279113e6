"""A policy's archive is its revision's, and `authz policy show` prints it."""

import hashlib
import json
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import TestLog

from authz.journal.chain import policy_notice
from authz.policy.archive import archive, parse_archive, revision
from authz.store.client import connect

MODULES = st.dictionaries(
    st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))
)


@given(MODULES, st.sampled_from(("", "a" * 64)))
def test_archive_is_read_back(modules, data):
    """Whatever the modules hold, they come out as they went in, in an order that does not count."""
    archived = archive(modules, data)
    assert parse_archive(archived).modules == modules
    assert parse_archive(archived).data == data
    assert archive(dict(reversed(modules.items())), data) == archived
    assert json.loads(archived) == {"modules": modules, "data": data}


def test_the_format_stays():
    """These are the bytes, for good: the revisions in old records are their hash."""
    archived = archive({"b.rego": "package b\n", "a/é.rego": 'package a\nx := "\u2028"'}, "0" * 64)
    assert (
        archived
        == (
            '{"data":"' + "0" * 64 + '","modules":{"a/é.rego":"package a\\nx := \\"\u2028\\"",'
            '"b.rego":"package b\\n"}}'
        ).encode()
    )
    assert revision(archived) == hashlib.sha256(archived).hexdigest()


@pytest.mark.parametrize(
    "archived",
    [
        b"", b"[]", b"{}", b"\xff", b'{"modules":{}}', b'{"modules":[],"data":""}',
        b'{"modules":{"a":5},"data":""}', b'{"modules":{},"data":"x"}',
        b'{"modules":{},"data":null}', b'{"modules":{},"data":"","more":1}',
    ],
)  # fmt: skip
def test_what_is_no_archive(archived):
    """Other bytes are refused."""
    with pytest.raises(ValueError, match=r"\w"):
        parse_archive(archived)


FIRST = archive({"a.rego": "package a\n", "b/c.rego": "package b.c"}, "d" * 64)
SECOND = archive({"a.rego": "package a # [red]2[/]\n"})
REVISIONS = (revision(FIRST), revision(SECOND))


@pytest.fixture
def stored(database, tmp_path):
    """A store with two archived policies, put there by a receiver's way."""
    log = TestLog(tmp_path, database)
    entries = [policy_notice(1, revision(text), text) for text in (FIRST, SECOND)]
    entries.append(({"kind": "notice", "time": 1, "event": "block"}, b""))
    log.append_entries(log.written_entries(entries))
    log.seal()
    log.end()
    return database


def show(store, *arguments, code=0):
    command = [sys.executable, "-m", "authz", "policy", "show", *arguments, "--store", store]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == (code != 0)
    return done.stderr if code else done.stdout


def test_show(stored):
    """The text is printed as it is, with its files' names, by any unambiguous beginning."""
    printed = show(stored, REVISIONS[0])
    assert "\n# a.rego\npackage a\n\n# b/c.rego\npackage b.c\n" in printed
    assert f"revision {REVISIONS[0]}" in printed
    assert "d" * 64 in printed
    assert "package a # [red]2[/]\n" in show(stored, REVISIONS[1][:12])
    told = json.loads(show(stored, REVISIONS[1][:12], "--json"))
    assert told.pop("first_seen").startswith("20")
    modules = {"a.rego": "package a # [red]2[/]\n"}
    assert told == {"revision": REVISIONS[1], "data": "", "modules": modules}


def test_show_by_record(stored):
    """A record's place leads to the text that its revision names."""
    with connect(stored) as client:
        rows = client.execute("SELECT origin, index, policy_revision FROM audit_log")
    loaded = {revision: f"{origin}@{index}" for origin, index, revision in rows if revision}
    assert set(loaded) == set(REVISIONS)
    assert "package a # [red]2[/]\n" in show(stored, loaded[REVISIONS[1]])
    [other] = [f"{origin}@{index}" for origin, index, revision in rows if not revision]
    assert "no policy made this record" in show(stored, other, code=1)
    assert "no such record" in show(stored, "elsewhere/log@7", code=1)
    assert "no such record" in show(stored, "0197a3a0-0000-7000-8000-000000000000", code=1)


@pytest.mark.thorough
def test_what_cannot_be_shown(stored):
    """An unknown revision, one that fits several, and a changed text are told apart."""
    assert "no policy is archived" in show(stored, "0" * 64, code=1)
    assert "hexadecimal" in show(stored, "latest", code=2)
    more = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(40)]
    with connect(stored) as client:
        client.execute("INSERT INTO policies (revision, text) VALUES", [(r, "x") for r in more])
    [(digit, _)] = Counter(name[0] for name in more).most_common(1)
    assert "give more digits" in show(stored, digit, code=2)
    assert "changed" in show(stored, more[0], code=1)
