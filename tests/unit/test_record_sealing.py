"""Sealed inputs: what they hold, what they never hold, and who can open them."""

import base64
import copy
import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.errors import UnavailableError, UsageError
from authz.record.credentials import REPLACED, without_credentials
from authz.record.sealing import (
    SealError,
    SealingKey,
    key_id_of,
    load_sealing_key,
    seal,
    unseal,
)

KEY = SealingKey.of(b"k" * 32)
HEADERS = ("attributes", "request", "http", "headers")
JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJkci5hbGRlciJ9.c2lnbmF0dXJl"
SECRET = "s3cr3t-value"


def document(*, headers=None, path="/fhir/Patient/p-1", **more):
    http = {"method": "GET", "path": path, "headers": headers or {}, **more.pop("http", {})}
    return {"attributes": {"request": {"http": http}, **more.pop("attributes", {})}, **more}


def test_what_is_sealed_comes_back():
    """The holder of the key reads the document as it was, but for its credentials."""
    original = document(headers={"accept": "x", "authorization": f"Bearer {JWT}"})
    before = copy.deepcopy(original)
    opened = unseal(KEY, seal(KEY, original, "d-1"), "d-1")
    assert original == before, "the document itself is not changed"
    del before["attributes"]["request"]["http"]["headers"]["authorization"]
    assert opened.document == before
    assert opened.removed == ((*HEADERS, "authorization"),)


@given(st.binary(max_size=4), st.integers(0, 2**16))
def test_changed_bytes_do_not_open(noise, place):
    """Whatever byte is changed, in the head, the nonce or the text, nothing opens."""
    sealed = seal(KEY, document(), "d-1")
    place %= len(sealed)
    changed = sealed[:place] + noise + sealed[place + len(noise) :]
    if changed != sealed:
        with pytest.raises(SealError):
            unseal(KEY, changed, "d-1")


def test_it_opens_for_its_decision_and_its_key_only():
    """Moved to another decision, or tried with another key, it does not open, and says which key
    it wants without telling what is inside."""
    sealed = seal(KEY, document(path="/fhir/Patient/p-77"), "d-1")
    assert key_id_of(sealed) == KEY.id
    assert b"p-77" not in sealed
    with pytest.raises(SealError):
        unseal(KEY, sealed, "d-2")
    with pytest.raises(SealError, match=KEY.id):
        unseal(SealingKey.of(b"o" * 32), sealed, "d-1")
    assert seal(KEY, document(), "d-1") != seal(KEY, document(), "d-1"), "a nonce of its own"


def test_the_key_file(tmp_path):
    """It is made for its owner only, gives the same key again, and is refused if others read it;
    without `create` a missing one is a key that is missing."""
    path = tmp_path / "sealing.key"
    with pytest.raises(UnavailableError):
        load_sealing_key(path, create=False)
    key = load_sealing_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert unseal(load_sealing_key(path, create=False), seal(key, document(), "d"), "d")
    path.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        load_sealing_key(path)
    path.chmod(0o600)
    path.write_text("no key\n")
    with pytest.raises(UsageError, match="sealing key"):
        load_sealing_key(path)


CREDENTIALS = {
    "authorization": {"headers": {"authorization": f"Bearer {SECRET}"}},
    "proxy-authorization": {"headers": {"proxy-authorization": f"Basic {SECRET}"}},
    "cookie": {"headers": {"cookie": f"session={SECRET}"}},
    "x-api-key": {"headers": {"x-api-key": SECRET}},
    "x_api_key": {"headers": {"x_api_key": SECRET}},
    "a token": {"headers": {"x-csrf-token": SECRET}},
    "a secret": {"headers": {"x-client-secret": SECRET}},
    "a password": {"headers": {"x-password": SECRET}},
    "a session": {"headers": {"x-session-id": SECRET}},
    "the client's certificate": {"headers": {"x-forwarded-client-cert": SECRET}},
    "a token by its look": {"headers": {"x-user": JWT}},
    "a token in the query": {"path": f"/a?access_token={SECRET}&x=1"},
    "a token in the query, escaped": {"path": f"/a?access%5Ftoken={SECRET}"},
    "an id token": {"path": f"/a?x=1&id_token={SECRET}"},
    "an api key": {"path": f"/a?api_key={SECRET}"},
    "OAuth's code": {"path": f"/callback?code={SECRET}&state=1"},
    "OAuth's code, long": {"path": f"/callback?code={SECRET * 3}"},
    "the query in its own field": {"http": {"query": f"token={SECRET}"}},
    "the query as read": {"parsed_query": {"access_token": [SECRET], "x": ["1"]}},
    "a token in the path": {"path": f"/download/{JWT}/x", "parsed_path": ["download", JWT, "x"]},
    "the path as a header": {"headers": {":path": f"/a?access_token={SECRET}"}},
    "where it came from": {"headers": {"referer": f"https://a.example/?code={SECRET}&state=2"}},
    "a fragment": {"headers": {"referer": f"https://a.example/?a=1#access_token={SECRET}"}},
    "a body": {"http": {"body": SECRET, "rawBody": base64.b64encode(SECRET.encode()).decode()}},
    "a body as read": {"parsed_body": {"password": SECRET}},
    "headers as a map": {
        "http": {
            "headerMap": {
                "headers": [
                    {"key": "Authorization", "value": f"Bearer {SECRET}"},
                    {"key": "x-user", "rawValue": base64.b64encode(JWT.encode()).decode()},
                    {"key": "accept", "value": "text/html"},
                ]
            }
        }
    },
    "extensions": {"attributes": {"contextExtensions": {"api-token": SECRET, "route": "r"}}},
    "a token in the metadata": {
        "attributes": {"metadataContext": {"filterMetadata": {"f": {"raw": [f"x {JWT}"]}}}}
    },
}


@pytest.mark.parametrize("parts", CREDENTIALS.values(), ids=CREDENTIALS)
def test_credentials_stay_outside(parts):
    """Nothing that lets somebody be somebody is sealed, and each place it stood at is told."""
    content, removed = without_credentials(document(**copy.deepcopy(parts)))
    assert SECRET.encode() not in content
    assert base64.b64encode(SECRET.encode()) not in content
    assert JWT.encode() not in content
    assert base64.b64encode(JWT.encode()) not in content
    assert removed
    kept = orjson.loads(content)
    for place in removed:
        assert _at(document(**parts), place) != _at(kept, place)


def _at(value, place):
    for name in place:
        value = value.get(name) if isinstance(value, dict) else value
    return value


KEPT = {
    "claims": {"attributes": {"metadataContext": {"filterMetadata": {
        "envoy.filters.http.jwt_authn": {"verified_jwt": {"sub": "dr.alder", "sid": "7"}}}}}},
    "headers": {"headers": {"x-purpose-of-use": "TREAT", "x-break-glass": "unconscious",
                            "user-agent": "x", "x-request-id": "6e0a", "host": "a?b=c"}},
    "a FHIR search for a code": {"path": "/fhir/Observation?code=8867-4,http://loinc.org|718-7"},
    "the same, escaped": {"path": "/fhir/Observation?code=http%3A%2F%2Floinc.org%7C8867-4"},
    "the same, as read": {"parsed_query": {"code": ["8867-4"], "patient": ["p-1"]}},
    "a body that is none": {"parsed_body": None, "truncated_body": False},
}  # fmt: skip


@pytest.mark.parametrize("parts", KEPT.values(), ids=KEPT)
def test_what_policies_decide_on_stays(parts):
    """Verified claims, purposes, searches: a policy finds them at replay as they were."""
    original = document(**copy.deepcopy(parts))
    content, removed = without_credentials(original)
    assert orjson.loads(content) == original
    assert removed == []


def test_bodies_on_demand():
    """A deployment that wants bodies sealed, for policies that decide on them, gets them."""
    original = document(http={"body": '{"a":1}'}, parsed_body={"a": 1})
    content, removed = without_credentials(original, bodies=True)
    assert (orjson.loads(content), removed) == (original, [])


_names = st.sampled_from(["authorization", "accept", "code", "x-token", "path", "headers", "ey"])
_values = st.recursive(
    st.one_of(st.text(max_size=8), st.none(), st.booleans(), st.just(JWT), st.just("?code=1")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(_names, st.text()), inner)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), _values), st.dictionaries(_names, st.text()), st.text())
def test_any_document_is_sealed(more, headers, path):
    """Whatever a request holds, sealing neither fails nor lets a token through."""
    original = document(headers=headers, path=path, attributes={"metadataContext": more})
    opened = unseal(KEY, seal(KEY, original, "d"), "d")
    assert JWT not in json.dumps(opened.document)
    if not opened.removed:
        assert opened.document == original
    assert REPLACED not in json.dumps(original)
