"""The client's address, from an Envoy that is believed and from one that is not."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.envoy.client_address import client_address

HEADER = "x-envoy-external-address"


@pytest.mark.parametrize("told", ["203.0.113.9", "10.1.2.3", "2001:db8::5", "::ffff:203.0.113.9"])
def test_what_envoy_says(told):
    """An Envoy that is trusted is believed, word for word; any other is not."""
    assert client_address("192.0.2.1", {HEADER: told}, trust_envoy=True) == told
    assert client_address("192.0.2.1", {HEADER: told}, trust_envoy=False) == "192.0.2.1"


@pytest.mark.parametrize(
    "told",
    [
        "",
        "unknown",
        "203.0.113.9,203.0.113.8",
        "203.0.113.9, 203.0.113.8",
        "203.0.113.9:80",
        "[2001:db8::5]",
        "[2001:db8::5]:80",
        "fe80::1%eth0",
        " 203.0.113.9",
        "203.0.113.9\n",
        "203.0.113",
        "3405803785",
        "0313.0.113.9",
        "203.0.113.9/32",
        "\u0662\u0660\u0663.0.113.9",
    ],
)
def test_what_is_no_address(told):
    """What is not exactly one address leaves the peer."""
    assert client_address("192.0.2.1", {HEADER: told}, trust_envoy=True) == "192.0.2.1"


OTHERS = st.sampled_from(["x-forwarded-for", "x-real-ip", "forwarded", "true-client-ip"])


@given(
    st.text(max_size=20) | st.ip_addresses().map(str),
    st.booleans(),
    st.dictionaries(OTHERS, st.text()),
)
def test_any_header(told, trust, others):
    """Whatever the headers say, the answer is the peer or an address; no other header counts."""
    found = client_address("peer", {**others, HEADER: told}, trust_envoy=trust)
    assert found == client_address("peer", {HEADER: told}, trust_envoy=trust)
    assert found == "peer" or (trust and found == told and ipaddress.ip_address(found))
    assert client_address("peer", others, trust_envoy=trust) == "peer"
