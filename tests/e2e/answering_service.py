"""The sample service, which also gives the answers of `ANSWERS` at ``/fhir/_fault/NAME``.

python tests/e2e/answering_service.py --listen 127.0.0.1:8080
"""

import argparse
import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from authz.demo.fhir import make_app

FHIR, NDJSON = "application/fhir+json", "application/fhir+ndjson"


def observation(number: int, patient: str) -> dict[str, Any]:
    return {"resourceType": "Observation", "id": f"o{number}", "status": "final",
            "subject": {"reference": f"Patient/{patient}"},
            "note": [{"text": "Nightshade Quillfeather is well"}]}  # fmt: skip


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{number:05d}" for number in range(count)]


def bundle(patients: list[str]) -> bytes:
    entries = [{"resource": observation(n, patient)} for n, patient in enumerate(patients)]
    return json.dumps({"resourceType": "Bundle", "type": "searchset", "entry": entries}).encode()


def lines(patients: list[str]) -> bytes:
    made = (json.dumps(observation(n, patient)) for n, patient in enumerate(patients))
    return "".join(f"{line}\n" for line in made).encode()


# What each answers with: status, headers, body; how many patients are in it.
ANSWERS: dict[str, tuple[int, dict[str, str], bytes, list[str]]] = {
    "answer-large": (
        200, {"Content-Type": FHIR}, bundle(names("large", 5000)), names("large", 5000)
    ),
    "answer-gzip": (
        200, {"Content-Type": FHIR, "Content-Encoding": "gzip"},
        gzip.compress(bundle(names("gzip", 7)), mtime=0), names("gzip", 7),
    ),
    "answer-deflate": (
        200, {"Content-Type": FHIR, "Content-Encoding": "deflate"},
        zlib.compress(bundle(names("deflate", 3))), names("deflate", 3),
    ),
    "answer-ndjson": (200, {"Content-Type": NDJSON}, lines(names("line", 40)), names("line", 40)),
    "answer-error": (
        500, {"Content-Type": FHIR},
        json.dumps({"resourceType": "OperationOutcome", "issue": []}).encode(), [],
    ),
    "answer-image": (200, {"Content-Type": "image/png"}, b"\x89PNG" * 100, []),
    "answer-named": (
        200, {"Content-Type": "image/png", "X-Audit-Patients": "named-1,named-2"},
        b"\x89PNG" * 100, ["named-1", "named-2"],
    ),
    "answer-other": (200, {"Content-Type": "application/json"}, b'{"who":"someone"}', []),
    "answer-half": (200, {"Content-Type": FHIR}, bundle(names("half", 400)), names("half", 400)),
    "answer-empty": (204, {}, b"", []),
}  # fmt: skip


@web.middleware
async def answers(request: web.Request, handler: Any) -> web.StreamResponse:
    name = request.path.rpartition("/")[2]
    if name not in ANSWERS:
        return await handler(request)
    status, headers, body, _ = ANSWERS[name]
    response = web.StreamResponse(status=status, headers=headers)
    if name != "answer-half" and body:
        response.content_length = len(body)
    await response.prepare(request)
    for part in _parts(body[: len(body) // 2] if name == "answer-half" else body):
        await response.write(part)
    if name == "answer-half":
        assert request.transport
        request.transport.close()
    else:
        await response.write_eof()
    return response


def _parts(body: bytes) -> Iterator[bytes]:
    for begin in range(0, len(body), 10_000):
        yield body[begin : begin + 10_000]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    host, _, port = parser.parse_args().listen.rpartition(":")
    app = make_app()
    app.middlewares.insert(0, answers)
    web.run_app(app, host=host, port=int(port), access_log=None, print=None)


if __name__ == "__main__":
    main()
