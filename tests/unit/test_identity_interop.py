"""Tokens and key sets that another library made (joserfc), so that PyJWT is not its own judge."""

import json
import time

import pytest
from identity_provider import AUDIENCE, ISSUER, NO_FACTS, bearer, config, refusal
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from authz.identity.sources import Identities

KEYS = {
    "RS256": lambda: RSAKey.generate_key(2048, {"use": "sig"}),
    "PS512": lambda: RSAKey.generate_key(2048),
    "ES256": lambda: ECKey.generate_key("P-256"),
    "ES384": lambda: ECKey.generate_key("P-384", {"alg": "ES384"}),
    "ES512": lambda: ECKey.generate_key("P-521"),
    "EdDSA": lambda: OKPKey.generate_key("Ed25519"),
}


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")  # for Ed25519, RFC 9864: the same
@pytest.mark.parametrize("algorithm", KEYS)
def test_tokens_of_another_library(tmp_path, algorithm):
    """What joserfc signs and publishes is accepted; what it signs with another key is not."""
    ours, theirs = KEYS[algorithm](), KEYS[algorithm]()
    keys = KeySet([ours, KEYS["ES256"]()])
    for key in (*keys, theirs):
        key.ensure_kid()
    path = tmp_path / "jwks"
    path.write_text(json.dumps(keys.as_dict(private=False)))
    known = Identities(config(path, algorithms=[algorithm]))
    claims = {"iss": ISSUER, "aud": [AUDIENCE], "sub": "Ålder 山", "exp": int(time.time()) + 60}

    def token(key, **changed):
        header = {"alg": algorithm, "kid": ours.kid, "typ": "at+jwt"}
        return jwt.encode(header, {**claims, **changed}, key, algorithms=[algorithm])

    told = known.read(NO_FACTS, bearer(token(ours, roles="nurse")))
    assert (told.subject, told.roles) == ("Ålder 山", ("nurse",))
    assert refusal(known, token(theirs)) == "bad_signature"
    assert refusal(known, token(ours, exp=1)) == "token_expired"
