"""An authorization header with one meaning, and those with two."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.envoy.parsing import ambiguous_credentials

TOKEN68 = st.from_regex(r"[A-Za-z0-9._~+/-]+=*", fullmatch=True)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer eyJh.eyJz.c2ln",
        "bearer eyJh.eyJz.c2ln",
        "Bearer  eyJh.eyJz.c2ln",
        "Basic cm9vdDpyb290",
        "Basic cm9vdDpyb28=",
        "Negotiate",
        'Digest username="a,b \\" c", realm="x", nc=00000001,uri="/a?b=c"',
        "AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host;x-date, Signature=0a",
    ],
)
def test_one_set_of_credentials(value):
    """What a well-behaved client sends is not ambiguous."""
    assert not ambiguous_credentials(value)


@pytest.mark.parametrize(
    "value",
    [
        "Basic cm9vdDpyb290,Bearer eyJh.eyJz.c2ln",
        "Basic cm9vdDpyb290, Bearer eyJh.eyJz.c2ln",
        "Bearer eyJh.eyJz.c2ln,Bearer eyJh.eyJz.",
        "Bearer eyJh.eyJz.c2ln Bearer eyJh.eyJz.",
        "Bearer eyJh.eyJz.c2ln,",
        ",Bearer eyJh.eyJz.c2ln",
        "Bearer\teyJh.eyJz.c2ln",
        "Bearer eyJh.eyJz.c2ln!",
        'Digest username="root", Bearer eyJh.eyJz.c2ln',
        "Basic cm9vdDpyb28=,Bearer eyJh.eyJz.c2ln",
        "Basic cm9vdDpyb28==,Bearer eyJh.eyJz.c2ln",
        "Basic=,Bearer eyJh.eyJz.c2ln",
    ],
)
def test_several(value):
    """Two readers could take two persons from it."""
    assert ambiguous_credentials(value)


@given(st.sampled_from(["Basic", "Bearer", "Negotiate"]), TOKEN68, TOKEN68)
def test_two_tokens(scheme, first, second):
    """However two tokens are joined by a comma, that is no single one."""
    assert not ambiguous_credentials(f"{scheme} {first}")
    assert ambiguous_credentials(f"{scheme} {first},Bearer {second}")
    assert ambiguous_credentials(f"{scheme} {first}, Bearer {second}")
