"""Sources: their order, what each tells, and that nothing bad is passed over for the next one."""

import json

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from hypothesis import given
from hypothesis import strategies as st
from identity_provider import NO_FACTS, Signer, bearer, identities, refused

from authz.envoy.check import Facts, facts, input_document, told
from authz.identity.config import IdentityConfig
from authz.identity.sources import Identities, Identity, shown
from authz.identity.values import claim

SPIFFE = "spiffe://cluster.local/ns/clinic/sa/portal"
CLAIMS = {"sub": "dr.alder", "roles": ["physician", "admin"], "tenant": "lakeside"}
HEADERS = {"sources": ["headers"], "subject_header": "X-User"}


def known(**identity):
    return Identities(IdentityConfig.model_validate(identity))


@pytest.fixture(scope="module")
def signer():
    return Signer()


def test_the_default_is_what_envoy_verified():
    """Without any configuration: subject and roles from jwt_authn's claims, and no tenant."""
    read = known().read
    assert read(Facts(claims=CLAIMS), {}) == Identity(
        "dr.alder", ("physician", "admin"), source="jwt_authn", claims=CLAIMS
    )
    assert read(NO_FACTS, {"authorization": "Bearer x", "x-user": "root"}) == Identity()
    assert read(Facts(principal=SPIFFE), {}) == Identity()


def test_claims_from_a_real_check():
    """The claims that Envoy sends in a Check name the person."""
    request = CheckRequest()
    context = request.attributes.metadata_context.filter_metadata["envoy.filters.http.jwt_authn"]
    context.update({"payload": CLAIMS, "header": {"alg": "ES256"}})
    assert known(tenant_claim="tenant").read(facts(told(request)), {}) == Identity(
        "dr.alder", ("physician", "admin"), "lakeside", "jwt_authn", CLAIMS
    )


@pytest.mark.parametrize(
    ("value", "roles"),
    [
        ("nurse", ("nurse",)),
        (["nurse", 7, None, "", "admin"], ("nurse", "admin")),
        ("", ()),
        (None, ()),
        (7, ()),
        ({"nurse": True}, ()),
    ],
)
def test_roles(value, roles):
    """Roles are text or a list; what is neither is no role."""
    assert known().read(Facts(claims={"sub": "a", "roles": value}), {}).roles == roles


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sub", "u"),
        ("realm_access.roles", ["r"]),
        ("https://example.com/roles", ["namespaced"]),
        ("a.b", "whole"),
        ("a.c.d", 1),
        ("sub.x", None),
        ("realm_access.roles.x", None),
        ("missing", None),
        ("", None),
        (".", None),
        ("realm_access.", None),
    ],
)
def test_claims_by_path(name, value):
    """A claim is found by its whole name, or by the path that its dots make."""
    claims = {"sub": "u", "realm_access": {"roles": ["r"]}, "https://example.com/roles":
              ["namespaced"], "a.b": "whole", "a": {"b": "inner", "c": {"d": 1}}}  # fmt: skip
    assert claim(claims, name) == value


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc."), inner),
), st.text(alphabet="abc.", max_size=7))  # fmt: skip
def test_any_claims(value, name):
    """Whatever claims hold, reading them gives text, and never an error."""
    config = known(subject_claim=name or "sub", roles_claim=name, tenant_claim=name)
    told = config.read(Facts(claims={"a": value, "sub": value}), {})
    assert all(isinstance(text, str) for text in (told.subject, told.tenant, *told.roles))


def test_keycloak(tmp_path, signer):
    """Keycloak's tokens name roles under realm_access."""
    read = identities(
        tmp_path / "jwks",
        signer,
        identity={
            "subject_claim": "preferred_username",
            "roles_claim": "realm_access.roles",
            "tenant_claim": "organization",
        },
    ).read
    told = read(
        NO_FACTS,
        bearer(
            signer.token(
                sub="0f3b",
                preferred_username="alder",
                realm_access={"roles": ["physician"]},
                organization="lakeside",
            )
        ),
    )
    assert (told.subject, told.roles, told.tenant) == ("alder", ("physician",), "lakeside")


def test_mtls():
    """A peer is named by its SPIFFE ID, and by nothing else that a certificate may hold."""
    read = known(sources=["mtls"]).read
    assert read(Facts(principal=SPIFFE), {}) == Identity(SPIFFE, source="mtls")
    for other in ("", "portal.example", "CN=portal", "SPIFFE://a/b", "https://a/spiffe://b"):
        assert read(Facts(principal=other), {}) == Identity()


def test_headers():
    """Trusted headers name subject, roles and tenant."""
    read = known(**HEADERS, roles_header="x-roles", tenant_header="X-Tenant").read
    headers = {"x-user": " dr.alder ", "x-roles": "physician, admin,,", "x-tenant": "lakeside"}
    assert read(NO_FACTS, headers) == Identity(
        "dr.alder", ("physician", "admin"), "lakeside", "headers"
    )
    assert read(NO_FACTS, {"x-user": "a", "x-role": "b", "x_user": "c"}) == Identity(
        "a", source="headers"
    )
    assert read(NO_FACTS, {"x-roles": "admin", "x-tenant": "lakeside"}) == Identity()
    assert read(NO_FACTS, {"x-user": ""}) == Identity()


@pytest.mark.parametrize("value", ["a,b", "a,a", ",a", "a,", ",", "a, b"])
def test_a_trusted_header_that_came_twice(value):
    """A trusted header that came twice, or is a list, is refused and not chosen from."""
    named = known(**HEADERS, tenant_header="x-tenant")
    assert refused(named, NO_FACTS, {"x-user": value}) == "conflicting_identities"
    headers = {"x-user": "a", "x-tenant": value}
    assert refused(named, NO_FACTS, headers) == "conflicting_identities"


def test_a_header_that_came_twice_in_a_real_check():
    """In `header_map`, where Envoy sends each header by itself, a second one shows as well."""
    request = CheckRequest()
    headers = request.attributes.request.http.header_map.headers
    for value in ("dr.alder", "root"):
        headers.add(key="X-User", raw_value=value.encode())
    joined = input_document(request)["attributes"]["request"]["http"]["headers"]
    assert refused(known(**HEADERS), facts(told(request)), joined) == "conflicting_identities"


def test_headers_count_only_if_they_are_named():
    """No other configuration lets a header name anybody."""
    headers = {"x-user": "root", "x-forwarded-user": "root", "x-authz-subject": "root"}
    for sources in (["jwt_authn"], ["mtls"], ["mtls", "jwt_authn"]):
        assert known(sources=sources).read(NO_FACTS, headers) == Identity()


def all_sources(path, signer, order=("jwt", "jwt_authn", "mtls", "headers"), **identity):
    return identities(
        path,
        signer,
        identity={
            "sources": order,
            "subject_header": "x-user",
            "tenant_claim": "tenant",
            **identity,
        },
    )


def test_the_first_that_has_an_identity_counts(tmp_path, signer):
    """Sources are asked in their order, and the first that has an identity counts."""
    everything = Facts(claims={"sub": "from-envoy"}, principal=SPIFFE)
    headers = bearer(signer.token(sub="from-jwt")) | {"x-user": "from-header"}
    read = all_sources(tmp_path / "jwks", signer).read
    assert read(everything, headers).subject == "from-jwt"
    assert read(everything, {"x-user": "from-header"}).subject == "from-envoy"
    assert read(Facts(principal=SPIFFE), {"x-user": "from-header"}).subject == SPIFFE
    assert read(NO_FACTS, {"x-user": "from-header"}).subject == "from-header"
    assert read(NO_FACTS, {}) == Identity()
    backwards = ("headers", "mtls", "jwt_authn", "jwt")
    read = all_sources(tmp_path / "jwks", signer, backwards).read
    assert read(everything, headers).subject == "from-header"
    assert read(everything, bearer("bad")).subject == SPIFFE


def test_a_bad_token_is_not_passed_over(tmp_path, signer):
    """A token that is there and bad is refused, however good the sources after it are."""
    named = all_sources(tmp_path / "jwks", signer)
    everything = Facts(claims={"sub": "from-envoy"}, principal=SPIFFE)
    token = signer.token(exp=1)
    for headers, reason in (
        (bearer(token), "token_expired"),
        (bearer("x"), "malformed_token"),
        ({"authorization": "Bearer"}, "malformed_token"),
        ({"authorization": f"bearer {token}"}, "token_expired"),
        ({"authorization": f"Basic x,Bearer {token}"}, "malformed_token"),
    ):
        assert refused(named, everything, headers | {"x-user": "a"}) == reason


def test_claims_without_a_subject_are_not_passed_over():
    """What Envoy verified is the identity also where it names nobody."""
    named = known(sources=["jwt_authn", "headers"], subject_header="x-user")
    told = named.read(Facts(claims={"iss": "a", "roles": "nurse"}), {"x-user": "root"})
    assert (told.subject, told.roles, told.source) == ("", ("nurse",), "jwt_authn")


def test_required():
    """If an identity is required, a request without a subject is refused with 401."""
    named = known(required=True)
    assert refused(named, NO_FACTS, {}) == "no_identity"
    assert refused(named, Facts(claims={"iss": "a"}), {}) == "no_identity"
    assert refused(named, Facts(claims={"sub": "a"}), {}) == ""


def test_the_same_identity_in_two_sources(tmp_path, signer):
    """Sources of one group must agree where they are there; others may differ freely."""
    named = all_sources(tmp_path / "jwks", signer, same=[["jwt", "headers"]])
    alder = bearer(signer.token())
    assert refused(named, NO_FACTS, alder | {"x-user": "dr.alder"}) == ""
    assert refused(named, NO_FACTS, alder) == ""
    assert refused(named, NO_FACTS, {"x-user": "n.cedar"}) == ""
    assert refused(named, NO_FACTS, {}) == ""
    other = Facts(claims={"sub": "n.cedar"}, principal=SPIFFE)
    assert named.read(other, alder | {"x-user": "dr.alder"}).subject == "dr.alder"
    assert refused(named, NO_FACTS, alder | {"x-user": "Dr.Alder"}) == "conflicting_identities"
    assert refused(named, NO_FACTS, alder | {"x-user": "n.cedar"}) == "conflicting_identities"


def test_a_group_behind_the_source_that_counts(tmp_path, signer):
    """A group is compared also where an earlier source names the person, bad tokens included."""
    order = ("mtls", "jwt", "headers", "jwt_authn")
    named = all_sources(tmp_path / "jwks", signer, order, same=[["jwt", "headers"]])
    peer = Facts(principal=SPIFFE)
    alder = bearer(signer.token())
    assert named.read(peer, alder | {"x-user": "dr.alder"}).subject == SPIFFE
    assert refused(named, peer, alder | {"x-user": "n.cedar"}) == "conflicting_identities"
    assert refused(named, peer, bearer("x") | {"x-user": "n.cedar"}) == "malformed_token"
    named = all_sources(tmp_path / "jwks", signer, order, same=[])
    assert refused(named, peer, bearer("x")) == ""


def test_tenants_of_the_same_identity(tmp_path, signer):
    """Sources of one group must also agree on the tenant, if both tell one."""
    named = all_sources(
        tmp_path / "jwks", signer, same=[["jwt", "headers"]], tenant_header="x-tenant"
    )
    headers = bearer(signer.token(tenant="lakeside")) | {"x-user": "dr.alder"}
    assert refused(named, NO_FACTS, headers) == ""
    assert refused(named, NO_FACTS, headers | {"x-tenant": "lakeside"}) == ""
    assert refused(named, NO_FACTS, headers | {"x-tenant": "hillside"}) == "conflicting_identities"


def test_what_a_policy_sees(tmp_path, signer):
    """A policy sees what we verified or were told to trust, as plain JSON, and nothing that is in
    Envoy's own input already."""
    named = all_sources(tmp_path / "jwks", signer, roles_header="x-roles")
    token = signer.token(roles=["physician"], tenant="lakeside", jti="1")
    told = shown(named.read(NO_FACTS, bearer(token)))
    assert (told["subject"], told["roles"], told["tenant"]) == (
        "dr.alder", ["physician"], "lakeside",
    )  # fmt: skip
    assert told["claims"]["jti"] == "1"
    assert set(told) == {"subject", "roles", "tenant", "claims"}
    assert json.loads(json.dumps(told)) == told
    assert shown(named.read(NO_FACTS, {"x-user": "a", "x-roles": "b,c"})) == {
        "subject": "a", "roles": ["b", "c"], "tenant": "", "claims": {},
    }  # fmt: skip
    assert shown(named.read(Facts(claims=CLAIMS), {})) == {}
    assert shown(named.read(Facts(principal=SPIFFE), {})) == {}
    assert shown(named.read(NO_FACTS, {})) == {}


def test_a_policy_cannot_change_what_another_sees(tmp_path, signer):
    """What is shown of a token that is remembered is made anew for each request."""
    named = identities(tmp_path / "jwks", signer)
    token = bearer(signer.token())
    shown(named.read(NO_FACTS, token))["claims"]["sub"] = "root"
    assert shown(named.read(NO_FACTS, token))["claims"]["sub"] == "dr.alder"
