"""Signing in at an OpenID provider, and by a token that Envoy passes on."""

import time
from urllib.parse import parse_qs, urlsplit

import httpx2 as httpx
import jwt
import orjson
import pytest
from console_site import console, looks, mark_in, site
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from oidc_provider_mock import User, run_server_in_thread
from programs import free_port, until

__all__ = ["site"]  # the fixture
# The provider uses its own library's former ways.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def provider():
    """Somebody else's OpenID provider, which knows two people."""
    officer = User(sub="o.ash", claims={"roles": ["privacy-officer"]})
    with run_server_in_thread(require_nonce=True, user_claims=[officer]) as server:
        yield f"http://localhost:{server.server_port}"


@pytest.fixture(scope="module")
def browser(site, provider):
    """What asks the console, as a browser that follows nothing by itself."""
    port, secret = free_port(), site.directory / "client.secret"
    secret.write_text("a secret of the console's\n")
    with console(
        site, port=port, url=f"http://127.0.0.1:{port}",
        oidc={"issuer": provider, "client_id": "console", "client_secret_file": str(secret)},
    ) as client:  # fmt: skip
        yield client


def signed_in(browser, who, place="/findings"):
    """Sign in as a person does: from a page to the provider and back. The last answer."""
    browser.cookies.clear()
    answer = browser.get(browser.get(place).headers["location"])
    authorization = answer.headers["location"]
    asked = parse_qs(urlsplit(authorization).query)
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["nonce"]
    back = httpx.post(authorization, data={"sub": who}).headers["location"]
    return browser.get(back)


def test_from_a_page_and_back_to_it(site, browser):
    """Who signs in comes to where they wanted to go, under their name, in a cookie that scripts do
    not see; until they sign out."""
    answer = signed_in(browser, "o.ash", "/search?subject=n.reed")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/search?subject=n.reed"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    page = browser.get("/search?subject=n.reed")
    assert page.status_code == 200
    assert "o.ash" in page.text
    assert until(lambda: "o.ash" in [who for who, *_ in looks(site)], 20)
    assert browser.post("/sign-out", data={"mark": mark_in(page.text)}).status_code == 200
    assert browser.get("/search").status_code == 303


def test_somebody_without_a_role(browser):
    """Is known, and sees nothing."""
    signed_in(browser, "dr.alder")
    assert browser.get("/search").status_code == 403


def test_a_sign_in_of_somebody_else(browser):
    """A way back that another browser began signs nobody in; nor does one that was used."""
    browser.cookies.clear()
    authorization = browser.get("/sign-in").headers["location"]
    back = httpx.post(authorization, data={"sub": "o.ash"}).headers["location"]
    kept = dict(browser.cookies)
    browser.cookies.clear()
    assert browser.get(back).status_code == 401
    browser.cookies.update(kept)
    assert browser.get(back).status_code == 303
    assert browser.get(back).status_code == 401
    assert browser.get("/signed-in?code=x&state=y").status_code == 401
    assert browser.get("/signed-in?error=access_denied").status_code == 401


def test_a_session_that_was_made_up(browser):
    """Neither a changed cookie nor one under another key is believed."""
    signed_in(browser, "o.ash")
    [(name, value)] = browser.cookies.items()
    browser.cookies.clear()
    for other in (value[:-2] + "xx", "A" + value[1:], "e30.aaaa.bbbb"):
        answer = browser.get("/search", headers={"cookie": f"{name}={other}"})
        assert answer.status_code == 303, other


@pytest.mark.thorough
@pytest.mark.parametrize("place", ["https://evil.example/", "//evil.example", "/\\evil.example"])
def test_nobody_is_led_elsewhere(browser, place):
    """After signing in, only to pages of this console."""
    browser.cookies.clear()
    authorization = browser.get("/sign-in", params={"back": place}).headers["location"]
    back = httpx.post(authorization, data={"sub": "o.ash"}).headers["location"]
    assert browser.get(back).headers["location"] == "/"


def test_a_token_that_envoy_passes_on(site):
    """Is verified here again; one that does not hold is refused, and no header is believed."""
    directory = site.directory
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    jwk = ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "k"}
    (directory / "jwks.json").write_bytes(orjson.dumps({"keys": [jwk]}))
    issuer = {"issuer": "https://idp.example", "audiences": ["audit"]}
    identity = {
        "sources": ["jwt"], "issuers": [issuer | {"jwks": str(directory / "jwks.json")}],
    }  # fmt: skip
    claims = {
        "iss": "https://idp.example", "aud": "audit", "sub": "o.ash",
        "roles": ["privacy-officer"], "exp": int(time.time()) + 600,
    }  # fmt: skip

    def token(signer, **more):
        return jwt.encode(claims | more, signer, "ES256", headers={"kid": "k"})

    with console(site, identity=identity) as client:

        def status(**headers):
            return client.get("/search", headers=headers).status_code

        assert status(authorization=f"Bearer {token(key)}") == 200
        assert status(authorization=f"Bearer {token(other)}") == 401
        assert status(authorization=f"Bearer {token(key, exp=1)}") == 401
        assert status(authorization=f"Bearer {token(key, roles=['nurse'])}") == 403
        assert status(**{"x-authz-subject": "o.ash", "x-jwt-payload": "e30"}) == 401
