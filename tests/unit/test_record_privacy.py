"""Tokens in place of patients: stable for whoever has the key, and nothing without it."""

import base64
import hashlib
import hmac
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.errors import UsageError
from authz.record import FIELD, clean
from authz.record.privacy import KEY_BYTES, PrivacyKey, load_key

KEY = PrivacyKey.of(bytes(range(32)))
IDENTIFIERS = st.text(st.characters(codec="utf-8"), max_size=40)


@given(IDENTIFIERS)
def test_token(identifier):
    """A token is the key's id and half an HMAC-SHA-256, and fits its field unchanged."""
    token = KEY.token(identifier)
    digest = hmac.new(bytes(range(32)), identifier.encode(), hashlib.sha256).digest()[:16]
    told, _, encoded = token.partition(".")
    assert told == KEY.id
    assert base64.urlsafe_b64decode(encoded + "==") == digest
    assert re.fullmatch(r"[0-9a-f]{8}\.[A-Za-z0-9_-]{22}", token)
    assert clean({"patients": [token], "resource_id": token})["patients"] == [token]
    assert len(token) < FIELD["resource_id"].cap


@given(IDENTIFIERS, IDENTIFIERS)
def test_tokens_tell_patients_apart(one, other):
    """The same patient has the same token, two have two, and another key gives others."""
    assert (KEY.token(one) == KEY.token(other)) == (one == other)
    assert PrivacyKey.of(bytes(32)).token(one) != KEY.token(one)


def test_any_text_has_a_token():
    """Text that is not Unicode has a token too: the request is recorded all the same."""
    assert KEY.token("\ud800") != KEY.token("")


def test_key_id_does_not_tell_the_key():
    """The id is public: it is a hash of the key, and the key is in no representation by itself."""
    assert KEY.id == hashlib.sha256(b"authz privacy key\n" + KEY.secret).hexdigest()[:8]
    assert PrivacyKey.of(bytes(32)).id != KEY.id


def test_key_is_made_once(tmp_path):
    """The first start makes a key, of its own and private; every later one reads it."""
    path = tmp_path / "deep" / "privacy.key"
    key = load_key(path)
    assert len(key.secret) == KEY_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path) == key
    assert load_key(tmp_path / "other.key") != key
    assert [item.name for item in path.parent.iterdir()] == ["privacy.key"]


def test_starting_together(tmp_path, monkeypatch):
    """Processes that start together agree on one key."""
    monkeypatch.setattr(os, "getpid", threading.get_ident)
    with ThreadPoolExecutor(8) as threads:
        for number in range(30):
            path = tmp_path / str(number)
            keys = set(threads.map(load_key, [path] * 8))
            assert len(keys) == 1
    assert len(list(tmp_path.iterdir())) == 30


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_others_may_not_read(tmp_path, mode):
    """A key that others may read is refused, with the mend."""
    path = tmp_path / "privacy.key"
    load_key(path)
    path.chmod(mode)
    with pytest.raises(UsageError, match=r"chmod 600"):
        load_key(path)


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "zz" * 32, "0x" + "00" * 31])
def test_damaged_key(tmp_path, text):
    """A file that holds no key is never replaced by a new one: tokens would change."""
    path = tmp_path / "privacy.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="restore it from backup"):
        load_key(path)
    assert path.read_text() == text


def test_key_that_is_no_text(tmp_path):
    """Nor is one of other bytes."""
    path = tmp_path / "privacy.key"
    path.write_bytes(b"\xff" * 32)
    path.chmod(0o600)
    with pytest.raises(UsageError):
        load_key(path)
