"""Tokens that are verified here: what is accepted is what an issuer signed, and nothing else."""

import base64
import hmac
import json
import string
import time
from concurrent.futures import ThreadPoolExecutor

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st
from identity_provider import (
    AUDIENCE,
    ISSUER,
    MAKE,
    NO_FACTS,
    Signer,
    bearer,
    config,
    identities,
    jwks,
    refusal,
    refused,
    subject,
)

from authz.identity.sources import Identities, Identity
from authz.identity.tokens import bearer as token_in

NOW = int(time.time())  # when the tests were gathered; they may run an hour later
HOUR = 3600


def encoded(value):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


@pytest.fixture(scope="module")
def signer():
    return Signer()


@pytest.fixture(scope="module")
def known(signer, tmp_path_factory):
    return identities(tmp_path_factory.mktemp("keys") / "jwks.json", signer, leeway_seconds=0)


@pytest.mark.parametrize("name", MAKE)
def test_each_algorithm(tmp_path, name):
    """A token of each algorithm is verified, and one whose signature differs is not."""
    ours = Signer(name)
    known = identities(tmp_path / "jwks", ours, algorithms=[ours.algorithm])
    token = ours.token(roles=["physician"])
    told = known.read(NO_FACTS, bearer(token))
    assert (told.subject, told.roles, told.source) == ("dr.alder", ("physician",), "jwt")
    assert told.claims == jwt.decode(token, options={"verify_signature": False})
    body, _, signature = token.rpartition(".")
    other = "A" if signature[5] != "A" else "B"
    assert refusal(known, f"{body}.{signature[:5]}{other}{signature[6:]}") == "bad_signature"


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": NOW - 10}, "token_expired"),
        ({"exp": 0}, "token_expired"),
        ({"exp": -1e15}, "token_expired"),
        ({"nbf": NOW + 9 * HOUR}, "token_not_yet_valid"),
        ({"iat": NOW + 9 * HOUR}, "token_not_yet_valid"),
        ({"exp": None}, "malformed_token"),
        ({"exp": str(NOW + 600)}, "malformed_token"),
        ({"exp": True}, "malformed_token"),
        ({"exp": [NOW + 600]}, "malformed_token"),
        ({"exp": float("inf")}, "malformed_token"),
        ({"nbf": "soon"}, "malformed_token"),
        ({"iss": None}, "wrong_issuer"),
        ({"iss": "https://other.example"}, "wrong_issuer"),
        ({"iss": [ISSUER]}, "wrong_issuer"),
        ({"iss": ISSUER + "/"}, "wrong_issuer"),
        ({"aud": None}, "wrong_audience"),
        ({"aud": "billing"}, "wrong_audience"),
        ({"aud": []}, "wrong_audience"),
        ({"aud": ["billing", 7]}, "wrong_audience"),
        ({"aud": {"fhir": 1}}, "wrong_audience"),
        ({"sub": None}, "malformed_token"),
        ({"sub": ""}, "malformed_token"),
        ({"sub": 7}, "malformed_token"),
        ({"sub": ["dr.alder"]}, "malformed_token"),
        ({"name": float("nan")}, "malformed_token"),
        ({"name": "\ud800"}, "malformed_token"),
    ],
)
def test_claims_that_do_not_hold(signer, known, claims, reason):
    """A signed token is refused for what it says, each fault under its own reason."""
    assert refusal(known, signer.token(**claims)) == reason


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": [AUDIENCE, "billing"]},
        {"exp": NOW + 9 * HOUR + 0.5},
        {"nbf": NOW - 9},
        {"exp": 2**70},
    ],
)
def test_claims_that_hold(signer, known, claims):
    """One audience of several is enough; times may have fractions."""
    assert subject(known, signer.token(**claims)) == "dr.alder"


def test_leeway(signer, tmp_path):
    """Clocks may differ by the leeway, in both directions."""
    known = identities(tmp_path / "jwks", signer, leeway_seconds=60)
    assert subject(known, signer.token(exp=int(time.time()) - 20)) == "dr.alder"
    assert subject(known, signer.token(nbf=int(time.time()) + 20)) == "dr.alder"
    assert refusal(known, signer.token(exp=int(time.time()) - 90)) == "token_expired"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, 0, ["none"], {}])
@pytest.mark.parametrize("signature", ["", "AAAA"])
def test_no_signature(known, algorithm, signature):
    """A token without a signature is refused, whatever it calls that."""
    header = encoded({"alg": algorithm, "kid": "k1", "typ": "JWT"})
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "root", "exp": NOW + 9 * HOUR}
    assert refusal(known, f"{header}.{encoded(claims)}.{signature}") == "bad_signature"


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_public_key_is_no_secret(tmp_path, algorithm):
    """HMAC with any form of the public key as its secret is refused (RFC 8725, section 2.1)."""
    ours = Signer("RS256")
    known = identities(tmp_path / "jwks", ours)
    public = ours.key.public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    der = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "root", "exp": NOW + 9 * HOUR}
    body = f"{encoded({'alg': algorithm, 'kid': 'k1'})}.{encoded(claims)}"
    secrets = [pem, pem.strip(), der, jwks(ours).encode(), ours.jwk()["n"].encode(), b""]
    for secret in secrets:
        signature = hmac.digest(secret, body.encode(), f"sha{algorithm[2:]}")
        assert refusal(known, f"{body}.{encoded(signature)}") == "bad_signature"


def test_a_symmetric_key_in_the_set_counts_for_nothing(tmp_path):
    """A set that lists a secret gives nobody a way to sign."""
    secret = b"0123456789abcdef0123456789abcdef"
    shared = {"kty": "oct", "k": encoded(secret), "kid": "s", "alg": "HS256"}
    known = identities(tmp_path / "jwks", Signer(), shared)
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "root", "exp": NOW + 9 * HOUR}
    token = jwt.encode(claims, secret, "HS256", headers={"kid": "s"})
    assert refusal(known, token) == "bad_signature"


def test_an_algorithm_of_another_key(tmp_path):
    """An algorithm counts only with keys of its kind, and of a key that states one, only that."""
    rs, es = Signer("RS256", "r"), Signer("ES256", "e")
    known = identities(tmp_path / "jwks", rs.jwk(alg="RS256"), es)
    assert subject(known, rs.token()) == "dr.alder"
    assert refusal(known, rs.token({"kid": "e"})) == "unknown_key"
    assert refusal(known, es.token({"kid": "r"})) == "unknown_key"
    assert refusal(known, Signer("PS256", "r").token()) == "unknown_key"
    assert refusal(known, Signer("ES384", "e").token()) == "bad_signature"
    assert refusal(known, Signer("RS512", "r").token()) == "bad_signature"  # not configured


def test_weak_and_encryption_keys(tmp_path):
    """RSA below 2048 bits and keys for encryption verify nothing."""
    weak = Signer("RS256", "weak", rsa.generate_private_key(65537, 1024))  # noqa: S505 - that is the point
    secret = Signer("RS256", "enc")
    good = Signer("ES256", "good")
    known = identities(tmp_path / "jwks", weak, secret.jwk(use="enc"), good)
    assert subject(known, good.token()) == "dr.alder"
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        token = weak.token()
    assert refusal(known, token) == "unknown_key"
    assert refusal(known, secret.token()) == "unknown_key"


def test_keys_that_a_token_brings_along(known):
    """A key, certificate or address in the token's own header is never used."""
    theirs = Signer()
    for headers in (
        {"jwk": theirs.jwk()},
        {"jku": "http://127.0.0.1:9/keys"},
        {"x5u": "http://127.0.0.1:9/cert"},
        {"x5c": ["MIIB"]},
        {"kid": "k2", "jwk": theirs.jwk()},
    ):
        assert refusal(known, theirs.token(headers, sub="root")) in ("bad_signature", "unknown_key")


@pytest.mark.parametrize(
    "headers", [{"crit": ["exp"]}, {"crit": []}, {"crit": None, "kid": 7}, {"kid": ["k1"]}]
)
def test_headers_that_must_be_understood(known, signer, headers):
    """A critical extension and a key id that is no text are refused."""
    header = {"alg": "ES256", "kid": "k1", **headers}
    body = f"{encoded(header)}.{signer.token().split('.')[1]}"
    signature = jwt.get_algorithm_by_name("ES256").sign(body.encode(), signer.key)
    assert refusal(known, f"{body}.{encoded(signature)}") == "malformed_token"


def test_signatures_that_are_no_numbers_of_the_curve(known, signer):
    """ECDSA with r and s of zero, or in DER, is refused."""
    body, _, signature = signer.token().rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    for other in (bytes(64), encode_dss_signature(r, s), raw + b"\0", raw[:63], b"\0" * 132):
        assert refusal(known, f"{body}.{encoded(other)}") == "bad_signature"


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c",
        "a.b.c.d.e",
        "é.é.é",
        "\x00",
        "x" * 20_000,
        f"{encoded({'alg': 'ES256'})}..AAAA",
        f"{encoded([])}.{encoded({})}.AAAA",
        f"{encoded({})}.{encoded(7)}.AAAA",
        f"{encoded(b'{' * 900)}.{encoded({})}.AAAA",
        f"{encoded(b'[' * 9000)}.{encoded({})}.AAAA",
        f"{encoded(b'[' * 990 + b']' * 990)}.{encoded({})}.AAAA",
        f"{encoded({'alg': 'ES256', 'x': [[]]})[:-1]}=.{encoded({})}.AAAA",
    ],
)
def test_no_token_at_all(known, token):
    """What has not the form of a token is malformed."""
    assert refusal(known, token) == "malformed_token"


def test_a_header_that_nests_deep(known):
    """A header nested as deep as JSON may be is no way to exhaust the stack."""
    deep: object = 0
    for _ in range(500):
        deep = [deep]
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "root", "exp": NOW + 9 * HOUR}
    token = f"{encoded({'alg': 'ES256', 'kid': 'k1', 'x': deep})}.{encoded(claims)}.{'A' * 86}"
    assert refusal(known, token) == "bad_signature"
    token = f"{encoded({'alg': 'ES256', 'kid': 'k1'})}.{encoded({**claims, 'x': deep})}.{'A' * 86}"
    assert refusal(known, token) == "bad_signature"


_CHARACTERS = string.ascii_letters + string.digits + "-_.=+/, \t%é\x00"


@pytest.mark.thorough
@settings(max_examples=1500)
@given(data=st.data())
def test_a_mutated_token_is_nobody_else(known, signer, data):
    """However a valid token is changed, it is refused, or names whom it named."""
    token = data.draw(st.sampled_from([signer.token(), signer.token(sub="n.cedar", aud=["fhir"])]))
    name = subject(known, token)
    changed = list(token)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        how = data.draw(st.sampled_from(["replace", "insert", "delete", "swap"]))
        if how == "replace":
            changed[at] = data.draw(st.sampled_from(_CHARACTERS))
        elif how == "insert":
            changed.insert(at, data.draw(st.sampled_from(_CHARACTERS)))
        elif how == "delete" and len(changed) > 1:
            del changed[at]
        else:
            other = data.draw(st.integers(0, len(changed) - 1))
            changed[at], changed[other] = changed[other], changed[at]
    other = "".join(changed)
    if refused(known, NO_FACTS, bearer(other)) == "":
        assert subject(known, other) == name
        assert other.strip() == token


def test_every_character_of_a_token(known, signer):
    """Each character that is flipped alone, by one bit of its base64, makes a token refused."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    token = signer.token()
    assert subject(known, token) == "dr.alder"
    for at, character in enumerate(token):
        if character != ".":
            flipped = alphabet[alphabet.index(character) ^ 1]
            assert refusal(known, token[:at] + flipped + token[at + 1 :]), at


def test_parts_of_two_tokens(known, signer):
    """Header, claims and signature of different tokens are no token together."""
    one, two = signer.token().split("."), signer.token(sub="n.cedar").split(".")
    for mix in ((0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 1, 0)):
        token = ".".join((one, two)[which][part] for part, which in enumerate(mix))
        assert refusal(known, token) in ("", "bad_signature")
        if mix[1] != mix[2]:
            assert refusal(known, token) == "bad_signature"


@settings(max_examples=400)
@given(
    st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "b64", "zip", "enc", "jwk"]),
        st.none() | st.booleans() | st.integers() | st.text(max_size=5)
        | st.sampled_from(["ES256", "RS256", "none", "k1"]) | st.lists(st.text(max_size=3)),
    ),
    st.dictionaries(
        st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "jti"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
        | st.sampled_from([ISSUER, AUDIENCE]) | st.lists(st.text(max_size=3)),
    ),
    st.binary(max_size=70),
)  # fmt: skip
def test_any_header_and_claims(known, header, claims, signature):
    """Whatever header and claims say, without a signature of the issuer they are refused."""
    assert refusal(known, f"{encoded(header)}.{encoded(claims)}.{encoded(signature)}")


@settings(max_examples=300)
@given(st.dictionaries(
    st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "jti", "roles"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([ISSUER, AUDIENCE]) | st.lists(st.text(max_size=3)),
))  # fmt: skip
def test_any_claims_that_are_signed(known, signer, claims):
    """Whatever an issuer signs, it names somebody or is refused with a reason of ours."""
    told = refusal(known, signer.token(**claims))
    if not told:
        assert subject(known, signer.token(**claims)) == claims.get("sub", "dr.alder")


def test_key_ids(tmp_path):
    """A key that is not in the set is unknown; without an id, only a single fitting key counts."""
    one, two = Signer("ES256", "one"), Signer("RS256", "two")
    known = identities(tmp_path / "a", one, two)
    assert refusal(known, one.token({"kid": "three"})) == "unknown_key"
    assert subject(known, one.token({"kid": None})) == "dr.alder"
    third = Signer("ES256", "three")
    assert (
        refusal(identities(tmp_path / "b", one, third), one.token({"kid": None})) == "unknown_key"
    )
    assert refusal(identities(tmp_path / "c", third), one.token({"kid": None})) == "bad_signature"


def test_the_cache_ends_with_the_token(tmp_path, signer):
    """A token that was verified before is refused once it has expired."""
    known = identities(tmp_path / "jwks", signer, leeway_seconds=0)
    token = signer.token(exp=int(time.time()) + 2)
    first = known.read(NO_FACTS, bearer(token))
    assert known.read(NO_FACTS, bearer(token)) is first
    while time.time() < first.claims["exp"]:
        time.sleep(0.05)
    assert refusal(known, token) == "token_expired"


def test_the_cache_is_bounded(tmp_path, signer):
    """It holds as many tokens as the configuration says; none is a number too."""
    for entries in (0, 2):
        known = identities(tmp_path / "jwks", signer, identity={"cache_entries": entries})
        tokens = [signer.token(jti=str(n)) for n in range(5)]
        for token in tokens * 2:
            assert subject(known, token) == "dr.alder"
        last = known.read(NO_FACTS, bearer(tokens[-1]))
        assert (known.read(NO_FACTS, bearer(tokens[-1])) is last) == bool(entries)


def test_each_issuer_has_its_own_keys(tmp_path):
    """An issuer's key signs no token of another's, and their subjects can be kept apart."""
    ours, theirs = Signer("ES256", "k"), Signer("ES256", "k")
    (tmp_path / "ours").write_text(jwks(ours))
    (tmp_path / "theirs").write_text(jwks(theirs))
    partner = {"issuer": "https://partner.example", "audiences": [AUDIENCE],
               "jwks": str(tmp_path / "theirs"), "subject_prefix": "partner:"}  # fmt: skip
    first = config(tmp_path / "ours").issuers[0].model_dump()
    known = Identities(config(tmp_path / "ours", {"issuers": [first, partner]}))
    assert subject(known, ours.token()) == "dr.alder"
    assert subject(known, theirs.token(iss="https://partner.example")) == "partner:dr.alder"
    assert refusal(known, theirs.token()) == "bad_signature"
    assert refusal(known, ours.token(iss="https://partner.example")) == "bad_signature"


def test_tokens_in_two_places(tmp_path):
    """Each token that is there must be good, and all must name the same person; a token that was
    verified in one place is not therefore good in another."""
    ours, theirs = Signer("ES256", "k"), Signer("ES256", "k")
    (tmp_path / "ours").write_text(jwks(ours))
    (tmp_path / "theirs").write_text(jwks(theirs))
    second = {"issuer": "https://b.example", "audiences": [AUDIENCE], "header": "X-Forwarded-Token",
              "prefix": "", "jwks": str(tmp_path / "theirs")}  # fmt: skip
    first = config(tmp_path / "ours").issuers[0].model_dump()
    known = Identities(config(tmp_path / "ours", {"issuers": [first, second]}))
    one, two = ours.token(), theirs.token(iss="https://b.example")
    other = theirs.token(iss="https://b.example", sub="n.cedar")
    assert known.read(NO_FACTS, {"x-forwarded-token": two}).subject == "dr.alder"
    assert known.read(NO_FACTS, bearer(one) | {"x-forwarded-token": two}).subject == "dr.alder"
    for headers, reason in (
        (bearer(one) | {"x-forwarded-token": other}, "conflicting_identities"),
        (bearer(one) | {"x-forwarded-token": "x"}, "malformed_token"),
        (bearer(one) | {"x-forwarded-token": one}, "wrong_issuer"),
        (bearer(two), "wrong_issuer"),
    ):
        assert refused(known, NO_FACTS, headers) == reason


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("Bearer a.b.c", "a.b.c"),
        ("bearer a.b.c", "a.b.c"),
        ("BEARER   a.b.c ", "a.b.c"),
        ("Bearer\ta.b.c", "a.b.c"),
        ("Bearer", ""),
        ("Bearer ", ""),
        ("Basic YTpi", None),
        ("Bearerx a.b.c", None),
        ('Digest username="a", realm="b"', None),
        ("", None),
    ],
)
def test_where_the_token_is(value, token):
    """The scheme counts in any case (RFC 9110, section 11.1); another scheme is no token."""
    assert token_in(value, "bearer ") == token


@pytest.mark.parametrize(
    "value",
    ["Bearer a.b.c,Bearer a.b.c", "Basic YTpi,Bearer a.b.c", "Bearer a.b.c, x", ",bearer a"],
)
def test_a_header_that_came_twice(known, value):
    """Two credentials are refused, not chosen from."""
    assert refused(known, NO_FACTS, {"authorization": value}) == "malformed_token"


def test_no_token_is_nobody(known):
    """Without a token there is no identity, and no refusal."""
    assert known.read(NO_FACTS, {}) == Identity()
    assert known.read(NO_FACTS, {"authorization": "Basic YTpi"}) == Identity()


def test_nothing_of_the_token_in_the_refusal(known, signer):
    """A refusal, its cause and its context quote nothing of the token."""
    for token in (signer.token(iss="marker-x"), signer.token()[:-4] + "zzzz", "marker-x.y.z"):
        with pytest.raises(Exception, match=r"^[a-z_]+$") as raised:
            known.read(NO_FACTS, bearer(token))
        assert raised.value.__cause__ is None
        assert raised.value.__context__ is None or raised.value.__suppress_context__


def test_several_threads_at_once(tmp_path):
    """Threads that verify the same few tokens, good and bad, each get the answer of their own."""
    ours = Signer("EdDSA")
    known = identities(tmp_path / "jwks", ours, identity={"cache_entries": 8})
    good = {f"person-{n}": ours.token(sub=f"person-{n}") for n in range(24)}
    bad = [ours.token(sub="root")[:-6] + "AAAAAA", ours.token(aud="x"), ours.token({"kid": "x"})]

    def work(seed):
        for turn in range(200):
            name = f"person-{(seed * 7 + turn) % 24}"
            assert subject(known, good[name]) == name
            assert refusal(known, bad[turn % 3]) in (
                "bad_signature", "wrong_audience", "unknown_key",
            )  # fmt: skip
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
