"""The pages about a record, a person, a patient."""

import asyncio
from collections.abc import Sequence
from typing import cast

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from authz.console import charts, words
from authz.console.searching import tokens_of
from authz.console.timelines import timeline
from authz.console.web import HEADERS, NotFoundError, Site, Visit
from authz.ledger import NoteError, ProofError
from authz.proof import make_proof
from authz.record import FIELDS, Record, read_place
from authz.record.privacy import PrivacyKey
from authz.report import findings
from authz.report.explained import Asked, explanations
from authz.report.lookup import look_up_with_days
from authz.store import pages, policies, tiles, timelines
from authz.store.client import Client
from authz.store.lookups import Window
from authz.store.pages import Filters
from authz.store.timelines import Seen

_DAY_US = 24 * 3_600 * 1_000_000
_LIMIT = 200
_PATIENTS = 15
_MONTH_US = 30 * _DAY_US
_SIX_YEARS_US = 6 * 366 * _DAY_US


class Pages:
    """`keys` are the privacy keys, the deployment's first: with none, nobody searches by a
    patient's identifier here."""

    def __init__(self, site: Site, keys: Sequence[PrivacyKey]) -> None:
        self._site = site
        self._store = site.store
        self._keys = keys

    def routes(self) -> list[Route]:
        page = self._site.page
        return [
            page("/record/{place:path}", "record", self.record),
            page("/proof/{place:path}", "record", self.proof),
            page("/person/{subject:path}", "person", self.person),
            page("/patient", "patient", self.find_patient, ["POST"]),
            page("/patient/{tokens}", "patient", self.patient, ["GET", "POST"]),
        ]

    async def record(self, visit: Visit) -> Response:
        origin, index = _record_place(visit)
        found = await self._store.ask(pages.request, origin, index)
        if not found:
            raise NotFoundError(f"There is no record {origin}@{index}.")
        tokens = tuple(dict.fromkeys(t for one in found for t in _texts(one, "patients")))
        await visit.look("record", tokens=tokens[:1000], record=f"{origin}@{index}")
        asked = next(
            one for one in found if (one["origin"], one.get("index", 0)) == (origin, index)
        )
        decision = next((one for one in found if one["kind"] == "decision"), None)
        revision = str((decision or asked).get("policy_revision", ""))
        stored = await self._store.ask(policies.find, revision, 1) if revision else []
        feeds, explained = await self._explained(decision or asked, tokens)
        return await visit.show(
            "record.html", told=words.whole(decision or asked),
            records=[words.whole(one) for one in found], revision=revision,
            policy=_readable(stored[0].text) if stored else "", explained=explained, feeds=feeds,
            names=await visit.names([str((decision or asked).get("subject", ""))]),
            fields=words.IN_ORDER, times=_TIMES,
        )  # fmt: skip

    async def proof(self, visit: Visit) -> Response:
        """A file for whoever wants to check a record by themselves."""
        origin, index = _record_place(visit)
        found = await self._store.ask(_proof, origin, index)
        if found is None:
            raise NotFoundError(f"There is no record {origin}@{index} that is sealed.")
        text, record = found
        await visit.look(
            "record", tokens=tuple(_texts(record, "patients")), proof=f"{origin}@{index}"
        )
        name = f"{origin.replace('/', '-')}-{index}.tlog-proof"
        headers = {**HEADERS, "content-disposition": f'attachment; filename="{_plain(name)}"'}
        return Response(text, 200, headers, "text/plain; charset=utf-8")

    async def person(self, visit: Visit) -> Response:
        subject = visit.request.path_params["subject"]
        await visit.allow("person", subject)
        await visit.look("person", person=subject)
        window = Window(visit.now_us - _MONTH_US)
        days, habits, latest, (seen, when), told = await asyncio.gather(
            self._store.ask(pages.person_days, subject),
            self._store.ask(pages.habits, subject),
            self._store.ask(pages.search, Filters(subject=subject), window, 50),
            self._store.ask(_whom, subject, window),
            self._store.ask(findings.find, Window(visit.now_us - 3 * _MONTH_US), subject),
        )
        if habits is None and not latest:
            raise NotFoundError("Nobody of this name did anything in the last two months.")
        picture = charts.lines(
            [one.day for one in days],
            [("their patients", [one.patients for one in days]),
             ("usual for their role", [one.role_patients for one in days])],
        )  # fmt: skip
        first, last = words.date_of(visit.now_us - _MONTH_US), words.date_of(visit.now_us)
        drawn = timeline(when, first, last, _short)
        return await visit.show(
            "person.html", subject=subject, days=days, habits=habits, rows=latest, patients=seen,
            timeline=drawn, whom=charts.dots(drawn.periods, drawn.rows), findings=told,
            picture=picture, names=await visit.names([subject]),
            may_block=await self._site.access.may(visit.person, "block", subject),
        )  # fmt: skip

    async def find_patient(self, visit: Visit) -> Response:
        """From an identifier to its tokens: the identifier is in no address and in no record."""
        identifier = visit.needed("identifier", "the patient's identifier")
        if not self._keys:
            raise HTTPException(404, "This console has no privacy key to search by.")
        reason = visit.needed("reason", "the reason why you look")
        tokens = [key.token(identifier) for key in self._keys]
        await visit.look("patient", reason=reason, tokens=tuple(tokens))
        place = "/search?patient=" if visit.given("to") == "search" else "/patient/"
        return RedirectResponse(f"{place}{','.join(tokens)}", 303, dict(HEADERS))

    async def patient(self, visit: Visit) -> Response:
        """Who saw a patient. Their name is shown to who asks for it with a reason."""
        tokens = tokens_of(visit.request.path_params["tokens"])[:8]
        reason = ""
        if visit.request.method == "POST":
            await visit.allow("names")
            reason = visit.needed("reason", "the reason why you want to see the name")
        await visit.look("patient", reason=reason, tokens=tokens, names=bool(reason))
        window = Window(visit.now_us - _SIX_YEARS_US)
        found, when = await self._store.ask(look_up_with_days, [tokens], window, _LIMIT)
        revealed = self._site.directory.patients(tokens) if reason else {}
        people: dict[str, int] = {}
        for one in when:
            people[one.whom] = people.get(one.whom, 0) + one.requests
        names = await visit.names(people)
        last = words.date_of(visit.now_us)
        first = min((one.day for one in when), default=last)
        drawn = timeline(when, first, last, lambda one: names.get(one, one) or "(nobody)")
        return await visit.show(
            "patient.html", tokens=tokens, found=found, people=people, revealed=revealed,
            reason=reason, names=names, timeline=drawn,
            picture=charts.dots(drawn.periods, drawn.rows),
            may_name=await self._site.access.may(visit.person, "names"),
        )  # fmt: skip

    async def _explained(
        self, record: Record, tokens: Sequence[str]
    ) -> tuple[Sequence[str], list[tuple[str, str]]]:
        """The feeds of reasons that are loaded; each patient of a request, and what explains that
        it was looked at."""
        feeds, found = await self._store.ask(_explanations, record, tokens)
        return feeds, [(token, found.get(number, "")) for number, token in enumerate(tokens, 1)]


_TIMES = frozenset(field.name for field in FIELDS if field.type == "time")


def _record_place(visit: Visit) -> tuple[str, int]:
    place = read_place(visit.request.path_params["place"])
    if place is None:
        raise NotFoundError("A record is named by its log and index: demo/receiver@10.")
    return place


def _texts(record: Record, name: str) -> list[str]:
    value = record.get(name, [])
    return value if isinstance(value, list) else []


def _readable(archive: bytes) -> str:
    return archive.decode("utf-8", "backslashreplace")


def _plain(name: str) -> str:
    return "".join(
        one if one.isascii() and (one.isalnum() or one in ".-_") else "_" for one in name
    )


def _proof(client: Client, origin: str, index: int) -> tuple[str, Record] | None:
    checkpoint = tiles.best_checkpoint(client, origin, index)
    for leaf in tiles.leaves(client, origin, index, index + 1).get(index, ()):
        try:
            if checkpoint:
                proof = make_proof(leaf, index, checkpoint[1], tiles.Tiles(client, origin))
                return str(proof), orjson.loads(leaf)
        except (NoteError, ProofError):
            continue
    return None


def _whom(client: Client, subject: str, window: Window) -> tuple[list[tuple[str, int]], list[Seen]]:
    """Whose records somebody asked for or was shown most, and when."""
    patients = pages.patients_of(client, subject, window, _PATIENTS)
    return patients, timelines.of_person(client, subject, [one for one, _ in patients], window)


def _short(token: str) -> str:
    """Of a token what tells it from others."""
    return f"{token.partition('.')[2][:8]}…"


def _explanations(
    client: Client, record: Record, tokens: Sequence[str]
) -> tuple[Sequence[str], dict[int, str]]:
    """The feeds of reasons that are loaded, and by a patient's number what explains the look."""
    numbers = {token: number for number, token in enumerate(tokens, 1)}
    subject, time = str(record.get("subject", "")), cast(int, record.get("time", 0))
    asked = Asked(subject, time, tuple(numbers.values()))
    feeds, [found] = explanations(client, numbers, [asked])
    return feeds, {one.patient: one.kind.replace("_", " ") for one in found}
