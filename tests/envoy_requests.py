"""Checks as Envoy sends them, from the vectors, with what a test wants changed."""

import json
from pathlib import Path

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.json_format import ParseDict
from hypothesis import settings

from authz.envoy.check import input_document

VECTORS = Path(__file__).parent / "vectors" / "ext_authz"
REQUESTS = json.loads((VECTORS / "requests.json").read_text())
ECHOED = json.loads((VECTORS / "expected.json").read_text())["echo.rego"]
UNHURRIED = settings(max_examples=100)


def vector(name):
    return ParseDict(REQUESTS[name], CheckRequest())


def with_http(**fields):
    request = vector("plain")
    http = request.attributes.request.http
    http.headers.update(fields.pop("headers", {}))
    for name, value in fields.items():
        setattr(http, name, value)
    return request


def parsed_body(content_type, body, **headers):
    raw = body if isinstance(body, bytes) else b""
    text = "" if raw else body
    headers = {"content-type": content_type, **headers}
    document = input_document(with_http(headers=headers, body=text, raw_body=raw))
    return document["truncated_body"] or document["parsed_body"]
