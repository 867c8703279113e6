"""One response, read as it streams by."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import unquote

from authz.disclosure.bodies import Document, Lines, Values
from authz.disclosure.coding import STEP, Decoder
from authz.disclosure.fhir import compartment
from authz.disclosure.findings import Findings, Seen, UnreadableError
from authz.disclosure.rules import RouteRules, Rule, Rules

_LINES = frozenset(
    ("application/fhir+ndjson", "application/ndjson", "application/x-ndjson", "application/jsonl")
)
_FHIR = frozenset(("application/fhir+json", "application/json+fhir", "application/fhir+ndjson"))
_JSON = frozenset(("application/json", "text/json"))
_MAX_HEADER = 64 * 1024
_T = TypeVar("_T")


class Reading:
    """What is configured, made once. `max_bytes` bounds a decoded body, `max_patients` what is
    found in one; `header` is the response header in which an upstream may name the patients.

    Raises `UsageError` for a rule that is none.
    """

    def __init__(
        self,
        *,
        max_bytes: int = 64 * 1024 * 1024,
        max_patients: int = 100_000,
        rules: Sequence[Rule] = (),
        header: str = "x-audit-patients",
    ) -> None:
        self.max_bytes = max_bytes
        self.max_patients = max_patients
        self.header = header.lower()
        self._rules = Rules(rules)
        compartment()  # read now, not within the first answer

    def rules(self, template: str) -> RouteRules:
        return self._rules.of(template)


class Answer:
    """Owns the reading of one response; belongs to one thread at a time. Nothing here raises, and
    nothing of the body is left after `finish`.

    `headers` have lower-case names; `template` is the request's path template.
    """

    def __init__(
        self, reading: Reading, status: int, headers: Mapping[str, str], *, template: str = ""
    ) -> None:
        self._findings = Findings(reading.max_patients)
        self._left = reading.max_bytes
        self._received = 0
        self._declared = _declared(headers.get("content-length", ""))
        self._named = reading.header in headers
        self._decoder = Decoder(headers.get("content-encoding", ""))
        self._reading = status not in (204, 304)
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        self._body = self._body_of(content_type, reading.rules(template))
        if self._named:
            self._guarded(self._read_header, headers[reading.header])

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body, as they came over the wire."""
        self._guarded(self._feed, chunk)

    def finish(self, *, cut: bool = False) -> Seen:
        """`cut`: the stream ended before the response did."""
        self._guarded(self._finish, cut)
        self._body = None
        return self._findings.seen()

    def _body_of(self, content_type: str, rules: RouteRules) -> Document | Lines | None:
        fhir = content_type in _FHIR
        values = Values(self._findings, rules, fhir=fhir, named=self._named)
        if content_type in _LINES:
            return Lines(self._findings, values)
        if fhir or content_type in _JSON or content_type.endswith("+json"):
            return Document(self._findings, values)
        return None

    def _read_header(self, value: str) -> None:
        if len(value) > _MAX_HEADER:
            self._findings.fail("too_large")
            return
        for item in value.split(","):
            if item.strip():
                self._findings.name(unquote(item.strip(), errors="backslashreplace"))

    def _feed(self, chunk: bytes) -> None:
        if not self._received and chunk and self._reading:
            self._look()
        self._received += len(chunk)
        for start in range(0, len(chunk), STEP):
            if not self._reading or self._body is None:
                return
            for piece in self._decoder.decode(chunk[start : start + STEP]):
                self._body.take(piece[: self._left])
                self._left -= len(piece)
                if self._left < 0:
                    raise UnreadableError("too_large")

    def _look(self) -> None:
        """A body begins. One that we cannot read is no trouble where the upstream has said itself
        whom it is about."""
        word = "encoding" if not self._decoder.known else "content_type" if not self._body else ""
        if word:
            self._reading = False
            if not self._named:
                raise UnreadableError(word)

    def _finish(self, cut: bool) -> None:
        cut = cut or 0 < self._received < self._declared
        if self._received and self._reading and self._body is not None:
            cut = cut or not self._decoder.ended
            self._body.end(cut=cut)
        # Nothing received and nothing cut: a HEAD request's answer, 204, or an empty body.
        if cut:
            self._findings.fail("cut")

    def _guarded(self, step: Callable[[_T], None], given: _T) -> None:
        try:
            step(given)
        except UnreadableError as error:
            self._stop(error.trouble)
        except Exception:  # noqa: BLE001 - the answer goes on; the error may quote it
            self._stop("internal_error")

    def _stop(self, trouble: str) -> None:
        self._findings.fail(trouble)
        self._reading = False
        self._body = None


def _declared(length: str) -> int:
    return int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0
