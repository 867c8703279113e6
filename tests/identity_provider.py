"""An identity provider for tests: keys of every kind, tokens, and its key set over real HTTP."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from authz.envoy.check import Facts
from authz.identity.config import IdentityConfig
from authz.identity.sources import Identities, RefusedError

ISSUER = "https://idp.example"
AUDIENCE = "fhir"
NO_FACTS = Facts()

RSA = rsa.generate_private_key(65537, 2048)
MAKE = {
    "RS256": lambda: RSA,
    "RS384": lambda: RSA,
    "RS512": lambda: RSA,
    "PS256": lambda: RSA,
    "PS384": lambda: RSA,
    "PS512": lambda: RSA,
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
}


class Signer:
    """A private key with its id, and tokens signed with it."""

    def __init__(self, algorithm="ES256", key_id="k1", key=None):
        self.key = key or MAKE[algorithm]()
        self.algorithm = "EdDSA" if algorithm == "Ed448" else algorithm
        self.id = key_id

    def jwk(self, **members):
        """The public key as an issuer publishes it."""
        algorithm = get_default_algorithms()[self.algorithm]
        public = algorithm.to_jwk(self.key.public_key(), as_dict=True)
        public.pop("key_ops", None)
        return {**public, "kid": self.id, "use": "sig", **members}

    def token(self, headers=None, **claims):
        """A token for dr.alder that is good for five minutes; a claim that is None is left out."""
        now = int(time.time())
        usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "dr.alder", "exp": now + 300, "iat": now}
        claims = {name: v for name, v in {**usual, **claims}.items() if v is not None}
        headers = {"kid": self.id, **(headers or {})}
        headers = {name: value for name, value in headers.items() if value is not None}
        return jwt.PyJWS().encode(
            json.dumps(claims).encode(), self.key, algorithm=self.algorithm, headers=headers
        )


def jwks(*signers):
    return json.dumps({"keys": [s.jwk() if isinstance(s, Signer) else s for s in signers]})


def identities(path, *signers, identity=None, **issuer):
    """Identities that take tokens of `signers`, whose keys are in the file `path`."""
    if signers:
        path.write_text(jwks(*signers))
    return Identities(config(path, identity, **issuer))


def config(place, identity=None, **issuer):
    values = {"issuer": ISSUER, "audiences": [AUDIENCE], "jwks": str(place), **issuer}
    return IdentityConfig.model_validate(
        {"sources": ["jwt"], "issuers": [values], **(identity or {})}
    )


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def subject(known, token):
    return known.read(NO_FACTS, bearer(token)).subject


def refusal(known, token):
    """The reason for which `token` is refused, "" if it is not."""
    return refused(known, NO_FACTS, bearer(token))


def refused(known, facts, headers):
    try:
        known.read(facts, headers)
    except RefusedError as refusal:
        error = refusal
    else:
        return ""
    statuses = {"keys_unavailable": 503, "conflicting_identities": 403}
    assert error.status == statuses.get(error.reason, 401)
    assert str(error) == error.reason
    return error.reason


class KeyServer:
    """A key set over HTTP on 127.0.0.1, that can go away and come back on the same port."""

    def __init__(self):
        self.body = b""
        self.status = 200
        self.headers = {}
        self.asked = 0
        self._port = 0
        self._server = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}/keys"

    def up(self):
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                served.asked += 1
                self.send_response(served.status)
                for name, value in served.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(served.body)))
                self.end_headers()
                self.wfile.write(served.body)

            def log_message(self, *_):
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def down(self):
        if self._server:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    def serve(self, *signers):
        self.body = jwks(*signers).encode()
