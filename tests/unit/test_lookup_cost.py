"""What questions about one patient or person cost: what concerns them, however long the log is."""

import re

import pytest

from authz.record import FIELDS
from authz.report import look_up
from authz.report.activity import activity
from authz.store import lookups, pages, timelines
from authz.store.client import connect
from authz.store.lookups import EVER, Window
from authz.store.migrations import ASKED_FOR, migrate
from authz.store.pages import Filters

pytestmark = pytest.mark.thorough

# A patient in every 10,000th request; in two answers among eight, each of which costs a block.
_ROWS = """INSERT INTO audit_log (origin, index, kind, sealed_at, time, decision_id, subject,
  allowed, patients, upstream, complete, resource_id)
SELECT 'hospital', number, ['decision', 'access', 'disclosure'][number % 3 + 1] AS kind, at, at,
  toString(intDiv(number, 3)), if(rare, 'dr.rare', concat('n.', toString(number % 90))), true,
  multiIf(rare, ['key.rare'],
    number IN (14, 30014), arrayMap(n -> if(n = 5, 'key.rare', 'key.p'), range(8)),
    [concat('key.', toString(cityHash64(intDiv(number, 3)) % 20000))]),
  'service', true, toString(number)
FROM (SELECT number, intDiv(number, 30000) * 30000 + 3 > number AS rare,
  toDateTime64('2026-03-01 00:00:00', 6, 'UTC') + number AS at FROM numbers({begin}, {rows}))"""

QUESTIONS = {
    "who saw a patient": lambda c: look_up(c, [["key.rare"]]).requests,
    "search by patient": lambda c: pages.search(c, Filters(patients=("key.rare",)), EVER, 50),
    "whom a person looked at": lambda c: pages.patients_of(c, "dr.rare", Window(), 50),
    "a person's timeline": lambda c: timelines.of_person(c, "dr.rare", ["key.rare"], Window()),
    "search by person and resource": lambda c: pages.search(
        c, Filters(subject="dr.rare", resource_id="0"), EVER, 50
    ),
    "search by resource": lambda c: pages.search(c, Filters(resource_id="15"), EVER, 50),
    "a patient's timeline": lambda c: timelines.of_patient(c, ["key.rare"], EVER),
    "what a person did": lambda c: activity(c, "dr.rare", Window(), 100).requests,
    "search by person": lambda c: pages.search(c, Filters(subject="dr.rare"), EVER, 50),
}


class Counting:
    """A client that counts the bytes that the database reads for it."""

    def __init__(self, client):
        self._client = client
        self.bytes = 0

    def execute(self, *given, **more):
        found = self._client.execute(*given, **more)
        self.bytes += self._client.last_query.progress.bytes
        return found


def test_it_stays_flat(database):
    """Ten times the log, and of what is asked for in it, does not read ten times as much."""
    found = {name: [] for name in QUESTIONS}
    with connect(database) as client:
        migrate(client)
        for begin, rows in ((0, 60_000), (60_000, 540_000)):
            client.execute(_ROWS.format(begin=begin, rows=rows))
            client.execute("OPTIMIZE TABLE audit_log FINAL")
            for name, ask in QUESTIONS.items():
                counting = Counting(client)
                assert ask(counting)
                found[name].append(counting.bytes)
    assert {name: read for name, read in found.items() if read[1] > 3 * read[0]} == {}


def test_the_copies_have_what_is_asked_for():
    """A question for a column that the copies of the log have not would read the log."""
    kept = set(ASKED_FOR.split(", "))
    assert set(pages._LISTED) <= kept
    assert set(lookups._COLUMNS) <= kept
    filtered = " ".join(pages._CONDITIONS.values())
    assert {field.name for field in FIELDS if re.search(rf"\b{field.name}\b", filtered)} <= kept
