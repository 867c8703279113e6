"""`authz doctor` about the hop count: what each recorded address means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.doctor import Level
from authz.doctor.documents import Document
from authz.doctor.envoy import Envoy
from authz.doctor.hops import FORGED, Settings, explained, send, settings
from authz.errors import UsageError

OWN = "198.51.100.7"


def taken(proxies: list[str], known: Settings) -> str:
    """The client's address as Envoy's documentation has it, for a request from `OWN` with the
    forged header through `proxies`, the last of them being Envoy's peer."""
    peers = [OWN, *proxies]
    header = [*FORGED, *peers[:-1]]
    place = known.hops if known.remote else known.hops + 1
    return peers[-1] if place == 0 or place > len(header) else header[-place]


@given(st.integers(0, 4), st.integers(0, 6), st.booleans())
def test_the_mend_is_right(proxies, hops, remote):
    """Whatever the proxies and the settings: the mend, followed until all is right, ends with the
    number of the proxies, and the first answer is right only where the settings are."""
    front = [f"203.0.113.{number}" for number in range(proxies)]
    known = Settings(hops, remote)
    for _ in range(10):
        finding = explained("p", taken(front, known), OWN, known)
        if finding.level is Level.OK:
            break
        text = finding.mend.partition("(")[0].partition(";")[0]
        known = Settings(int(text.split()[-1]), known.remote or "use_remote_address: true" in text)
    right = known.hops == proxies if known.remote else known.hops + 1 == proxies
    assert right
    assert finding.level is Level.OK


@given(st.integers(0, 4), st.integers(0, 6))
def test_without_settings_the_direction_is_right(proxies, hops):
    """Without Envoy's configuration, too high says by how much, and too low says so."""
    front = [f"203.0.113.{number}" for number in range(proxies)]
    finding = explained("p", taken(front, Settings(hops, remote=True)), OWN, None)
    if hops == proxies:
        assert finding.level is Level.OK
        return
    assert finding.level is Level.FAIL
    if hops > proxies:
        assert f"lower xff_num_trusted_hops by {hops - proxies};" in finding.mend
        assert "anyone can choose" in finding.why
    else:
        assert "too low" in finding.seen
        assert "look like one" in finding.why


def test_one_address_in_two_spellings():
    """An IPv4 address within IPv6, and a zone, are the same address."""
    for source in ("::ffff:198.51.100.7", OWN):
        assert explained("p", source, OWN, None).level is Level.OK
    assert explained("p", "fe80::1", "fe80::1%eth0", None).level is Level.OK
    assert explained("p", "", OWN, None).level is Level.WARN


def test_settings_that_disagree_are_none():
    """One value is told only if all listeners have it."""

    def envoy(*hops):
        kind = "type.googleapis.com/x.HttpConnectionManager"
        filters = [
            {"typed_config": {"@type": kind, "xff_num_trusted_hops": n, "use_remote_address": True}}
            for n in hops
        ]
        listeners = [{"filter_chains": [{"filters": filters}]}]
        return Envoy(Document("x", {"static_resources": {"listeners": listeners}}))

    assert settings([envoy(1, 1)]) == Settings(1, remote=True)
    assert settings([envoy(1), envoy(2)]) is None
    assert settings([envoy("x")]) is None
    assert settings([]) is None


@pytest.mark.parametrize(
    "url", ["127.0.0.1:80", "http://", "http://u:p@host", "http://host/path", "http://host:x"]
)
def test_urls_that_are_none(url):
    """Only scheme, host and port are taken; the error repeats nothing of it."""
    with pytest.raises(UsageError, match="want http") as error:
        send(url, "/", None)
    assert "u:p" not in str(error.value)
