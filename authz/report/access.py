"""The access report of a patient: everybody who saw them or tried to, and each request."""

from collections.abc import Mapping, Sequence

from authz.record.shown import shown
from authz.report.completeness import Completeness, section
from authz.report.document import Cell, Document, Row, Section, count, date, lines
from authz.report.explained import Explanation
from authz.report.lookup import Lookup, Request
from authz.report.people import Person
from authz.report.purposes import in_words


def document(
    found: Lookup, people: Mapping[str, Person], rests_on: Completeness,
    about: Sequence[tuple[str, Cell]], issuer: str, marking: str = "",
) -> Document:  # fmt: skip
    notes = [
        (
            f"{count(found.people, 'person', 'people')},"
            f" {count(found.total, 'request', 'requests')}, {found.denied:,} denied."
        )
    ]
    if found.more:
        notes.append(
            f"The newest {len(found.requests):,} are in this report, {found.more:,} older ones are"
            " not (authz report --limit)."
        )
    by_person: dict[str, list[Request]] = {}
    for request in found.requests:
        by_person.setdefault(request.subject, []).append(request)
    columns: tuple[str, ...] = ("who", "requests", "first, last (UTC)", "outcome")
    columns += ("no known reason",) if found.feeds else ()
    summary = tuple(
        _summary(subject, own, people, explains=bool(found.feeds))
        for subject, own in sorted(by_person.items(), key=lambda one: (-len(one[1]), one[0]))
    )
    return Document(
        "Access report",
        tuple(about),
        (
            Section("Who", columns, summary, empty="Nobody."),
            Section(
                "Each request",
                ("time (UTC), records", "who", "why", "what", "outcome"),
                tuple(operation(one, people, reasons=bool(found.feeds)) for one in found.requests),
                notes=(
                    (
                        "Answered: the service answered, so that something was seen. By request: it"
                        " named the patient; by answer: the answer held their data."
                    ),
                ),
                empty="No record in this time names this patient.",
            ),
            section(rests_on),
        ),
        notes=tuple(notes),
        issuer=issuer,
        marking=marking,
    )


def _summary(
    subject: str, own: Sequence[Request], people: Mapping[str, Person], *, explains: bool
) -> Row:
    refused = sum(one.outcome in ("denied", "rejected") for one in own)
    glass = sum(one.break_glass for one in own)
    first, last = shown(own[0].time), shown(own[-1].time)
    row = (
        who(own[-1], people),
        f"{len(own):,}",
        lines(first, last if last != first else ""),
        lines(
            f"{len(own) - refused:,} let through",
            f"{refused:,} denied" if refused else "",
            f"{glass:,} broken glass" if glass else "",
        ),
    )
    unknown = sum(len(one.explained) < len(one.patients) for one in own)
    return (*row, f"{unknown:,}" if subject else "") if explains else row


def who(request: Request, people: Mapping[str, Person]) -> Cell:
    """Name, subject, the roles that the decision confirmed, and where they work."""
    person = people.get(request.subject, Person(request.subject))
    return lines(person.shown or "(nobody identified)", ", ".join(request.roles), person.department)


def operation(
    request: Request, people: Mapping[str, Person], *, reasons: bool = False, whom: str = ""
) -> Row:
    """A request in a table; `reasons`: whether any are loaded, `whom` it was about."""
    named = f"broken glass: {request.reason}" if request.break_glass else request.reason
    explained = [_explained(one) for one in request.explained]
    if reasons and len(request.explained) < len(request.patients):
        explained.append("nothing known explains it")
    return (
        lines(shown(request.time), *places(request.records)),
        who(request, people),
        lines(in_words(request.purpose), named, *explained),
        lines(
            f"{request.doing} {request.resource_type}".strip(),
            f"{request.method} {request.path}".strip(),
            f"from {request.source_ip}" if request.source_ip else "",
            whom,
        ),
        lines(
            request.outcome,
            "answered" if request.answered else "no answer",
            f"by {', '.join(request.known)}" if request.known else "",
        ),
    )


def _explained(one: Explanation) -> str:
    since = f" from {date(one.since)}" if one.since else ""
    until = f" until {date(one.until)}" if one.until else ""
    return f"explained by: {one.kind.replace('_', ' ')}{since}{until}"


def places(records: Sequence[str]) -> list[str]:
    """Records by log and place in it, each log's name once."""
    by_log: dict[str, list[str]] = {}
    for record in records:
        origin, _, index = record.rpartition("/")
        by_log.setdefault(origin, []).append(index)
    return [f"{origin}/{', '.join(own)}" for origin, own in by_log.items()]
