"""Reports and exports from the console: what ``authz report`` and ``authz export`` make, as files.
Each is decided by the console's policy, and on record with a reason."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal, TypeVar
from zipfile import ZIP_DEFLATED

from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from zipstream import ZipStream

from authz.console import words
from authz.console.searching import Search, tokens_of
from authz.console.web import HEADERS, Site, Visit
from authz.errors import UnavailableError, UsageError
from authz.record.privacy import PrivacyKey
from authz.report import disclosures, kinds, pages
from authz.report.document import Document
from authz.report.exports.manifest import FILES, NAME, Format
from authz.report.exports.write import Export
from authz.report.kinds import Frame, Made
from authz.report.people import identified
from authz.store import checkpoints, migrations
from authz.store.client import Client
from authz.store.exports import Selection
from authz.store.lookups import Window

Kind = Literal["disclosures", "access", "access_internal", "activity", "breach", "review"]
About = Literal["patient", "person", "all"]
Form = Literal["html", "pdf"]
T = TypeVar("T", bound=str)

_DAY_US: Final = 24 * 3_600 * 1_000_000
_LIMIT: Final = 2_000  # requests in a report; the command makes longer ones
_KINDS: Final = ("decision", "access", "disclosure")
_FORMS: Final[Mapping[Form, str]] = MappingProxyType(
    {"html": "text/html", "pdf": "application/pdf"}
)


@dataclass(frozen=True, slots=True)
class _Report:
    title: str
    about: About
    days: int
    """Of how much time, where nothing is said; 0 is what an accounting is of."""


REPORTS: Final[Mapping[Kind, _Report]] = MappingProxyType({
    "disclosures": _Report("Accounting of disclosures, for the patient", "patient", 0),
    "access": _Report("Access report, for the patient", "patient", 0),
    "access_internal": _Report("Access report, with what is suspended", "patient", 0),
    "activity": _Report("Activity report", "person", 30),
    "breach": _Report("Breach list", "person", 30),
    "review": _Report("Periodic review", "all", 90),
})  # fmt: skip


class Reports:
    """`keys` are the privacy keys, the deployment's first; `hours` is within what a use of
    break-glass is to be reviewed."""

    def __init__(self, site: Site, keys: list[PrivacyKey], hours: float) -> None:
        self._site = site
        self._keys = keys
        self._hours = hours
        self._printing = asyncio.Semaphore(1)

    def routes(self) -> list[Route]:
        page = self._site.page
        return [
            page("/reports", "report", self.show),
            page("/report", "report", self.report, ["POST"]),
            page("/export", "export", self.export, ["POST"]),
        ]

    async def show(self, visit: Visit) -> Response:
        """What can be made: of a person, a patient, a search, or of all."""
        search = Search.of(visit)
        filters = search.filters
        await visit.look("report", tokens=filters.patients, **search.told)
        given = {"patient": bool(filters.patients), "person": bool(filters.subject)}
        access = self._site.access
        known = [
            kind for kind, one in REPORTS.items() if given.get(one.about) or not any(given.values())
        ]
        allowed = await asyncio.gather(
            *(access.may(visit.person, "report", filters.subject, kind) for kind in known)
        )
        return await visit.show(
            "reports.html", search=search, since=visit.given("since"), until=visit.given("until"),
            reports={kind: REPORTS[kind] for kind, may in zip(known, allowed, strict=True) if may},
            can_ask=bool(self._keys), formats=list(FILES),
            may_export=await access.may(visit.person, "export"),
        )  # fmt: skip

    async def report(self, visit: Visit) -> Response:
        """A report as a file. What is in it is on record before anything of it is sent."""
        kind = _one_of(visit, "report", REPORTS)
        form = _one_of(visit, "form", _FORMS)
        reason = visit.needed("reason", "the reason why you make this report")
        about = REPORTS[kind].about
        person = visit.needed("subject", "the person") if about == "person" else ""
        await visit.allow("report", person, kind)
        whom = await self._patient(visit) if about == "patient" else _Patient()
        frame = await self._frame(visit, REPORTS[kind])
        told = {
            "report": kind, "person": person, "form": form, "since": frame.window.since_us,
            "until": frame.window.until_us,
        }  # fmt: skip
        if about != "person":
            await visit.look("report", reason=reason, tokens=whom.tokens, **told)
        made = await self._site.store.ask(self._made(kind, frame, person, whom))
        if about == "person":
            await visit.look("report", reason=reason, tokens=made.tokens, **told)
        if form == "html":
            page = await asyncio.to_thread(pages.html, made.document)
            data = page.encode("utf-8", "backslashreplace")
        else:
            data = await self._pdf(made.document)
        name = f"{kind.replace('_', '-')}-{words.date_of(visit.now_us)}.{form}"
        return Response(data, 200, _attached(name), _FORMS[form])

    async def export(self, visit: Visit) -> Response:
        """The records of a search, as they are read: a ZIP archive with the manifest at its end."""
        search = Search.of(visit)
        form = _one_of(visit, "format", FILES)
        reason = visit.needed("why", "the reason why you export these records")
        await visit.look(
            "export", reason=reason, tokens=search.filters.patients, format=form, **search.told
        )
        wanted = Selection(search.window, search.filters, _KINDS)
        pieces = self._site.store.stream(lambda client: _archive(client, form, wanted))
        first = await anext(pieces)  # an error until here has a page of its own

        async def body() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        name = f"export-{words.date_of(visit.now_us)}.zip"
        return StreamingResponse(body(), 200, _attached(name), "application/zip")

    async def _patient(self, visit: Visit) -> "_Patient":
        """Of a form: tokens, or an identifier that becomes some."""
        tokens = tokens_of(visit.given("patient", 512))
        identifier = "" if tokens else visit.needed("identifier", "the patient's identifier")
        if identifier and not self._keys:
            raise HTTPException(404, "This console has no privacy key to search by.")
        tokens = tokens or tuple(key.token(identifier) for key in self._keys)
        return _Patient(tokens, identifier or tokens[0])

    async def _frame(self, visit: Visit, report: _Report) -> Frame:
        earliest = disclosures.earliest(visit.now_us)
        first = visit.now_us - report.days * _DAY_US if report.days else earliest
        since = visit.time("since")
        if since is not None and since < earliest:
            raise HTTPException(400, f"since: want {disclosures.YEARS} years ago at most.")
        window = Window(first if since is None else since, visit.time("until"))
        frame = Frame(window, visit.now_us, visit.person.subject, visit.given("issuer"))
        if not await self._site.access.may(visit.person, "names"):
            return frame
        directory = self._site.directory
        identifiers = directory.patients_file if self._keys else None
        return replace(
            frame, people=directory.people_file, identifiers=identifiers, keys=self._keys
        )

    async def _pdf(self, document: Document) -> bytes:
        """In a process of its own, one at a time: it takes long, and much memory."""
        async with self._printing:
            alone = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            try:
                return await asyncio.get_running_loop().run_in_executor(alone, pages.pdf, document)
            except UsageError:
                raise HTTPException(
                    501, "No PDFs can be made here: WeasyPrint or Pango is missing; take HTML."
                ) from None
            except BrokenProcessPool:
                raise HTTPException(
                    503, "The PDF could not be made: take HTML, or ask for a shorter time."
                ) from None
            finally:
                alone.shutdown(wait=False)

    def _made(
        self, kind: Kind, frame: Frame, person: str, whom: "_Patient"
    ) -> Callable[[Client], Made]:
        def make(client: Client) -> Made:
            match kind:
                case "activity":
                    return kinds.activity(client, frame, person, _LIMIT)
                case "breach":
                    return kinds.breach(client, frame, person)
                case "review":
                    return kinds.review(client, frame, self._hours)
            patient = whom.named(frame)
            if kind == "disclosures":
                return kinds.disclosures(client, frame, patient, whom.tokens)
            return kinds.patient_access(
                client, frame, patient, whom.tokens, _LIMIT, for_patient=kind == "access"
            )

        def told(client: Client) -> Made:
            try:
                return make(client)
            except UnavailableError as error:
                raise HTTPException(409, f"This cannot be told: {error}.") from None

        return told


@dataclass(frozen=True, slots=True)
class _Patient:
    """Whom a report is about, and what they are called in it where nobody knows better."""

    tokens: tuple[str, ...] = ()
    called: str = ""

    def named(self, frame: Frame) -> str:
        known = identified(self.tokens, frame.keys, frame.identifiers) if frame.identifiers else {}
        for one in known.values():
            return f"{one.name} ({one.identifier})" if one.name else one.identifier
        return self.called


def _archive(client: Client, form: Format, wanted: Selection) -> Generator[bytes, None, None]:
    migrations.check(client)
    origins = [origin for origin, *_ in checkpoints.newest(client)]
    export = Export(client, origins, form, wanted)
    pieces = export.pieces()
    archive = ZipStream(compress_type=ZIP_DEFLATED, compress_level=1)
    archive.add(pieces, FILES[form])
    archive.add(_manifest(export), NAME)
    try:
        yield from archive
    finally:
        pieces.close()


def _manifest(export: Export) -> Iterator[bytes]:
    """Once the records are out."""
    yield export.manifest().to_json()


def _one_of(visit: Visit, name: str, known: Mapping[T, object]) -> T:
    given = visit.given(name)
    for one in known:
        if one == given:
            return one
    raise HTTPException(400, f"{name}: want one of {', '.join(map(str, known))}.")


def _attached(name: str) -> dict[str, str]:
    return {**HEADERS, "content-disposition": f'attachment; filename="{name}"'}
