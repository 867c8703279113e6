"""A service that answers with bundles of a size: ``/fhir/_fault/BYTES``; above 4 MB, NDJSON."""

import argparse
import json
from functools import lru_cache
from typing import Any

from aiohttp import web

_PADDING = "x" * 700


def _observation(number: int, patients: int) -> dict[str, Any]:
    return {
        "resourceType": "Observation", "id": f"obs-{number:06d}", "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        "subject": {"reference": f"Patient/p-{number % patients:06d}"},
        "effectiveDateTime": "2026-01-01",
        "valueQuantity": {"value": 71.5, "unit": "/min", "system": "http://unitsofmeasure.org"},
        "component": [{"code": {"text": "rate"}, "valueInteger": number}],
        "text": {"status": "generated", "div": _PADDING[: 100 if number % 2 else 300]},
    }  # fmt: skip


@lru_cache
def bundle(size: int) -> bytes:
    entries: list[dict[str, Any]] = []
    length = 0
    while length < size or not entries:
        entries.append({"resource": _observation(len(entries), 200)})
        length += len(json.dumps(entries[-1])) + 2
    return json.dumps({"resourceType": "Bundle", "type": "searchset", "entry": entries}).encode()


async def answer(request: web.Request) -> web.StreamResponse:
    size = int(request.match_info["size"])
    if size <= 4 << 20:
        return web.Response(body=bundle(size), content_type="application/fhir+json")
    response = web.StreamResponse(headers={"Content-Type": "application/fhir+ndjson"})
    await response.prepare(request)
    lines = "".join(f"{json.dumps(_observation(n, 200))}\n" for n in range(200)).encode()
    for _ in range(size // len(lines)):
        await response.write(lines)
    await response.write_eof()
    return response


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    host, _, port = parser.parse_args().listen.rpartition(":")
    app = web.Application()
    app.router.add_get("/fhir/_fault/{size}", answer)
    web.run_app(app, host=host, port=int(port), access_log=None, print=None)


if __name__ == "__main__":
    main()
