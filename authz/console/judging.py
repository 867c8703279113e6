"""The pages about findings, which people are asked to judge, and about the policy."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from authz.blocks import block_notice
from authz.console import words
from authz.console.web import HEADERS, NotFoundError, Site, Visit
from authz.detect.break_glass import VERDICTS, Uses, review_notice, use_of
from authz.record import FIELD, read_place, text
from authz.report import findings
from authz.report.findings import Act, Finding
from authz.store import findings as stored
from authz.store import pages, policies
from authz.store.lookups import Window

_MONTH_US = 30 * 24 * 3_600 * 1_000_000
_HOUR_US = 3_600 * 1_000_000
_ACTS: dict[str, Act] = {
    "acknowledge": "acknowledged", "explain": "explained", "confirm": "confirmed",
}  # fmt: skip


class Judging:
    """`hours` is within what a use of break-glass is to be reviewed."""

    def __init__(self, site: Site, hours: float) -> None:
        self._site = site
        self._store = site.store
        self._hours = hours

    def routes(self) -> list[Route]:
        page = self._site.page
        return [
            page("/findings", "findings", self.findings),
            page("/finding/{place:path}", "findings", self.finding),
            page("/judge/{place:path}", "judge", self.judge, ["POST"]),
            page("/review/{place:path}", "judge", self.review, ["POST"]),
            page("/block/{subject:path}", "block", self.block, ["POST"]),
            page("/policy", "policy", self.policy),
            page("/policy/{revision}", "policy", self.revision),
        ]

    async def findings(self, visit: Visit) -> Response:
        await visit.look("findings")
        window = Window(visit.now_us - 3 * _MONTH_US)
        found, glass = await asyncio.gather(
            self._store.ask(findings.find, window), self._store.ask(stored.glass, window)
        )
        found.reverse()
        names = await visit.names([one.subject for one in found])
        return await visit.show(
            "findings.html", open=[one for one in found if one.is_open],
            closed=[one for one in found if not one.is_open], names=names,
            uses=Uses.of(glass).waiting, now=visit.now_us, hours=self._hours,
        )  # fmt: skip

    async def finding(self, visit: Visit) -> Response:
        found = await self._found(visit)
        named = await self._store.ask(stored.named, found.records, found.sealed_at)
        tokens = {token for one in named.values() for token in one.get("patients", ())}  # type: ignore[union-attr]
        await visit.look("findings", finding=found.id, tokens=tuple(sorted(tokens))[:1000])
        may = self._site.access
        return await visit.show(
            "finding.html", one=found,
            named={one: words.whole(record) for one, record in named.items()},
            names=await visit.names([found.subject]),
            may_judge=await may.may(visit.person, "judge", found.subject),
            may_block=bool(found.subject)
            and await may.may(visit.person, "block", found.subject),
        )  # fmt: skip

    async def judge(self, visit: Visit) -> Response:
        """Somebody says something of a finding. It is on record before the page says so."""
        found = await self._found(visit)
        await visit.allow("judge", found.subject)
        act = _ACTS.get(visit.given("act"))
        if act is None:
            raise HTTPException(400, "act: want acknowledge, explain or confirm.")
        if found.subject == visit.person.subject:
            raise HTTPException(403, "Nobody judges a finding about themselves.")
        reason = visit.needed("reason", "a reason: what you found out")
        await visit.say(findings.opinion(act, found, reason, visit.person.subject, visit.now_us))
        return _back(f"/finding/{found.id}?said={act}")

    async def review(self, visit: Visit) -> Response:
        """Somebody says whether a use of break-glass was justified."""
        place = read_place(visit.request.path_params["place"])
        records = await self._store.ask(stored.at, [place]) if place else []
        use = next(filter(None, map(use_of, records)), None)
        if use is None:
            raise NotFoundError("There is no such use of break-glass.")
        await visit.allow("judge", use.subject)
        if use.subject == visit.person.subject:
            raise HTTPException(403, "Nobody reviews what they did themselves.")
        verdict = visit.given("verdict")
        if verdict not in VERDICTS:
            raise HTTPException(400, "verdict: want justified or not_justified.")
        reason = visit.needed("reason", "a reason: what you found out")
        by = visit.person.subject
        await visit.say(review_notice(use, verdict, reason, by, visit.now_us))
        return _back("/findings?said=reviewed")

    async def block(self, visit: Visit) -> Response:
        subject = visit.request.path_params["subject"]
        await visit.allow("block", subject)
        if subject != text(subject, FIELD["subject"].cap):
            raise HTTPException(400, "Such a name is on no record.")
        reason = visit.needed("reason", "the reason for the block")
        hours = visit.given("hours") or "1"
        if not hours.isdigit() or not 0 < int(hours) <= 24 * 365:
            raise HTTPException(400, "hours: want a number from 1 to 8760.")
        place = visit.given("finding")
        until = visit.now_us + int(hours) * _HOUR_US
        await visit.say(
            block_notice(
                subject, until, reason, visit.person.subject, visit.now_us,
                [place] if read_place(place) else [],
            )
        )  # fmt: skip
        return _back(f"/finding/{place}?said=blocked" if read_place(place) else "/findings")

    async def policy(self, visit: Visit) -> Response:
        await visit.look("policy", role=visit.given("role"))
        role = visit.given("role")
        changes, roles = await asyncio.gather(
            self._store.ask(pages.policy_changes, visit.now_us, 100),
            self._store.ask(pages.roles_in_use),
        )
        people = await self._store.ask(pages.people_in, role, 500) if role else []
        names = await visit.names([subject for subject, *_ in people])
        return await visit.show(
            "policy.html", changes=changes, roles=roles, role=role, people=people, names=names
        )

    async def revision(self, visit: Visit) -> Response:
        revision = visit.request.path_params["revision"]
        found = await self._store.ask(policies.find, revision, 1)
        if not found or not revision:
            raise NotFoundError("No policy of this revision is archived.")
        await visit.look("policy", revision=found[0].revision)
        return await visit.show(
            "revision.html", policy=found[0],
            text=found[0].text.decode("utf-8", "backslashreplace"),
        )  # fmt: skip

    async def _found(self, visit: Visit) -> Finding:
        place = read_place(visit.request.path_params["place"])
        found = await self._store.ask(findings.find_one, *place) if place else None
        if found is None:
            raise NotFoundError("There is no such finding.")
        return found


def _back(place: str) -> Response:
    return RedirectResponse(place, 303, dict(HEADERS))
