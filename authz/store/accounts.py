"""What reconciliation asks the database, of all logs."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from clickhouse_driver import Client

from authz.record import DECIDED, Record, details_of
from authz.store import rows

_COLUMNS = (
    "origin", "index", "sealed_at", "kind", "writer", "decision_id", "enforced", "upstream",
    "request_id", "decided_by", "status", "response_details",
    *(name for name in DECIDED if name != "enforced"),
)  # fmt: skip
_ASKED_AT_ONCE = 10_000
_SOONER_US = 600 * 1_000_000  # the other half may have been sealed so much sooner
_SOUGHT_LONG = 1_000  # ids that are sought in the whole log, at most
_LOOK_BACK = "sealed_at > now64(6) - INTERVAL 30 DAY"


class Accounted:
    """The database, as the receiver of log `origin` asks it. Errors are `client.QUERY_ERRORS`."""

    def __init__(self, client: Client, origin: str) -> None:
        self._client = client
        self._origin = origin
        self._origin_value = {"origin": origin}

    def search(self, decision_ids: Sequence[str], since_us: int) -> Iterator[Record]:
        """Records with one of the ids, as `_read` gives them: those sealed since shortly before
        `since_us`, and for the first of the ids that are alone then, those before that."""
        since = since_us - _SOONER_US
        seen: dict[str, int] = {}
        for begin in range(0, len(decision_ids), _ASKED_AT_ONCE):
            some = decision_ids[begin : begin + _ASKED_AT_ONCE]
            condition = "sealed_at >= fromUnixTimestamp64Micro(%(since)s, 'UTC')"
            for record in self._read(condition, {"since": since}, some):
                one = str(record["decision_id"])
                seen[one] = seen.get(one, 0) + 1
                yield record
        alone = [one for one in decision_ids if seen.get(one, 0) < 2][:_SOUGHT_LONG]
        if alone:
            condition = "sealed_at < fromUnixTimestamp64Micro(%(since)s, 'UTC')"
            yield from self._read(condition, {"since": since}, alone)

    def newest(self, writers: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The told time of each writer's newest record, in whatever log, and its number."""
        if not writers:
            return {}
        found = self._client.execute(
            "SELECT writer, toUnixTimestamp64Micro(max(time)), max(writer_seq) FROM audit_log"
            f" WHERE writer IN %(writers)s AND writer_seq > 0 AND {_LOOK_BACK} GROUP BY writer",
            {"writers": list(writers)},
        )
        return {writer: (time, seq) for writer, time, seq in found}

    def rows(self, first: int, end: int) -> Iterator[Record]:
        """The log's own records from index `first` up to `end`."""
        return rows.read(self._client, "audit_log", self._origin, first, end)

    def told(self) -> list[tuple[int, int, int, int]]:
        """The last intervals that the log tells: first index, end, when the last record was sealed,
        and how far the log had been counted when it was closed."""
        query = (
            "SELECT details FROM audit_log WHERE origin = %(origin)s AND kind = 'notice'"
            " AND writer_seq = 0 AND event = 'interval_summary' ORDER BY index DESC LIMIT 100"
        )
        found: list[tuple[int, int, int, int]] = []
        for (details,) in reversed(self._client.execute(query, self._origin_value)):
            told = details_of({"details": details})
            first, end, until, as_of = (told.get(n) for n in ("first", "end", "until", "as_of"))
            if all(isinstance(number, int) for number in (first, end, until, as_of)):
                found.append((first, end, until, as_of))  # type: ignore[arg-type]
        return found

    def under_way(self) -> list[Record]:
        """Decisions that the log tells as under way, and whose accesses have not come since."""
        told = (
            "SELECT DISTINCT arrayJoin(records) FROM audit_log WHERE origin = %(origin)s"
            f" AND kind = 'notice' AND writer_seq = 0 AND {_LOOK_BACK}"
        )
        carried = self._ids(told + " AND event IN ('interval_summary', 'under_way')")
        carried -= self._ids(told + " AND event = 'gap' AND rule = 'no_access'")
        if not carried:
            return []
        found = list(self._read("true", {}, sorted(carried)))
        ended = {record["decision_id"] for record in found if record["kind"] == "access"}
        return [
            record
            for record in found
            if record["kind"] == "decision" and record["decision_id"] not in ended
        ]

    def away(self) -> tuple[dict[str, int], set[str]]:
        """Writers the log tells as away, each since when, and those it tells as lost."""
        query = (
            "SELECT event, details, toUnixTimestamp64Micro(sealed_at) FROM audit_log"
            " WHERE origin = %(origin)s AND kind = 'notice' AND writer_seq = 0"
            " AND (event = 'writer_lost' OR (event = 'gap' AND rule = 'writer_away'))"
            f" AND {_LOOK_BACK} ORDER BY index"
        )
        away: dict[str, int] = {}
        lost: set[str] = set()
        for event, details, sealed_at in self._client.execute(query, self._origin_value):
            told = details_of({"details": details})
            if event == "writer_lost":
                lost.add(str(told.get("writer", "")))
            else:
                away.setdefault(str(told.get("source", "")), sealed_at)
        return away, lost

    def _ids(self, query: str) -> set[str]:
        return {row[0] for row in self._client.execute(query, self._origin_value)}

    def _read(
        self, condition: str, values: dict[str, Any], decision_ids: Sequence[str]
    ) -> Iterable[Record]:
        """Decisions, accesses and disclosures with one of the ids, which are sent beside the query:
        its text has a bound."""
        ids = {
            "name": "ids",
            "structure": [("id", "String")],
            "data": [{"id": one} for one in decision_ids],
        }
        selected = ", ".join(
            "toUnixTimestamp64Micro(sealed_at)" if name == "sealed_at" else f"`{name}`"
            for name in _COLUMNS
        )
        query = (
            f"SELECT {selected} FROM audit_log WHERE kind IN ('decision', 'access', 'disclosure')"
            f" AND {condition} AND decision_id IN (SELECT id FROM ids) ORDER BY origin, index"
        )
        for row in self._client.execute(query, values, external_tables=[ids]):
            yield {name: value for name, value in zip(_COLUMNS, row, strict=True) if value}
