"""Trust files: what they say is taken, and nothing in them is passed over."""

import pytest
import yaml

from authz.errors import UsageError
from authz.ledger import Signer
from authz.trust import TrustedLog, load_trust

LOG, NEXT = Signer("prod/receiver", bytes(32)).verifier, Signer("prod/receiver", b"n" * 32).verifier
KEY = {"origin": "prod/receiver", "keys": [str(LOG)]}


def witness(name):
    key = Signer(name, name.encode() * 4).verifier
    return type(key)(key.name, key.public_key, cosigns=True)


W1, W2 = witness("w1.examp"), witness("w2.examp")


def load(tmp_path, content):
    path = tmp_path / "trust.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_trust(path)


def test_the_old_form(tmp_path):
    """Origins and keys alone are a trust file."""
    assert load(tmp_path, {"logs": [KEY]}) == [TrustedLog("prod/receiver", (LOG,))]


def test_all_of_it(tmp_path):
    """Several keys, anchors (relative ones beside the file), witnesses and their quorum."""
    log = KEY | {"keys": [str(LOG), str(NEXT)], "anchors": ["/mnt/worm/authz", "kept"]}
    log["witnesses"] = {"quorum": 1, "keys": [str(W1), str(W2), str(W1)]}
    anchors = (type(tmp_path)("/mnt/worm/authz"), tmp_path / "kept")
    assert load(tmp_path, {"logs": [log]}) == [
        TrustedLog("prod/receiver", (LOG, NEXT), anchors, (W1, W2), 1)
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("logs: [", "not YAML"),
        ("\x00", "not YAML"),
        ("", "want 'logs:'"),
        ("logs:", "want 'logs:'"),
        ({"logs": []}, "names no log"),
        ({"logs": [{"origin": "a"}]}, r"logs\.0\.keys"),
        ({"logs": [KEY | {"keys": []}]}, r"logs\.0\.keys"),
        ({"logs": [KEY | {"keys": ["nonsense"]}]}, r"logs\.0\.keys\.0: not an Ed25519 key"),
        ({"logs": [KEY | {"keys": [str(W1)]}]}, r"logs\.0\.keys\.0: .*belongs under 'witnesses'"),
        ({"logs": [KEY | {"anchor": ["/a"]}]}, r"logs\.0\.anchor is no key here; known: anchors"),
        ({"logs": [KEY | {"anchors": "/a"}]}, r"logs\.0\.anchors"),
        ({"logs": [KEY | {"witnesses": {"keys": [str(W1)]}}]}, r"logs\.0\.witnesses\.quorum"),
        ({"logs": [KEY | {"witnesses": {"quorum": 0, "keys": [str(W1)]}}]}, "greater than"),
        ({"logs": [KEY | {"witnesses": {"quorum": 2, "keys": [str(W1)] * 2}}]}, "2 of 1 witnesses"),
        ({"logs": [KEY | {"witnesses": {"quorum": 1, "keys": [str(LOG)]}}]}, "want a witness's"),
        ({"logs": [KEY | {"witnesses": {"quorm": 1, "keys": [str(W1)]}}]}, "known: keys, quorum"),
        ({"logs": [KEY, KEY]}, "prod/receiver is there twice"),
        ({"logs": [KEY], "log": []}, "log is no key here; known: expiry_writers, logs"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, content, said):
    """What cannot be taken as it stands is an error that names the field, and the mend."""
    with pytest.raises(UsageError, match=said):
        load(tmp_path, content)


def test_no_file(tmp_path):
    """So is a file that is not there."""
    with pytest.raises(UsageError, match="No such file"):
        load_trust(tmp_path / "trust.yaml")
