"""Response bodies for the tests of authz.disclosure, and how they are read there."""

import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from authz.disclosure import Answer, Reading, Seen

READING = Reading()
FHIR = "application/fhir+json"
NDJSON = "application/fhir+ndjson"


def raw_deflate(body: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(body) + deflate.flush()


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "identity": bytes,
    "gzip": lambda body: gzip.compress(body, 1),
    "x-gzip": lambda body: (
        gzip.compress(body[: len(body) // 2]) + gzip.compress(body[len(body) // 2 :])
    ),
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "deflate, gzip": lambda body: gzip.compress(zlib.compress(body)),
}


def seen(
    body: object,
    content_type: str = FHIR,
    *,
    reading: Reading = READING,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    template: str = "",
    cuts: Iterable[int] = (),
    cut: bool = False,
) -> Seen:
    """What is found in `body` (JSON is made of what is not bytes), given in pieces at `cuts`."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = Answer(
        reading, status, {"content-type": content_type, **(headers or {})}, template=template
    )
    places = [0, *sorted(place % (len(data) + 1) for place in cuts), len(data)]
    for start, end in itertools.pairwise(places):
        answer.feed(data[start:end])
    found = answer.finish(cut=cut)
    assert found.trouble != "internal_error"
    return found


def observation(patient: Any, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", "subject": {"reference": f"Patient/{patient}"}, **more}


def bundle(*resources: Any) -> dict[str, Any]:
    entries = [{"resource": resource} for resource in resources]
    return {"resourceType": "Bundle", "type": "searchset", "entry": entries}
