"""What the store's tables hold, as detection asks it."""

from authz.detect.feeds import FOREVER, REASONS, Chart, Feeds, Known, is_gone
from authz.store import feeds
from authz.store.client import Client
from authz.store.feeds import Loaded


class Tables:
    """The feeds of a store, read as a whole when a newer load is there. `client` is its own."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._taken: dict[str, Loaded] = {}
        self.loads: dict[str, Loaded] = {}
        """What there is, of each feed, as it was last seen."""

    def newer(self) -> Feeds | None:
        """All feeds, if they are not as they were the last time; None also while a load's rows are
        not all there yet. Raises `authz.store.client.QUERY_ERRORS`."""
        self.loads = feeds.current(self._client)
        if self.loads == self._taken:
            return None
        found = Feeds()
        for loaded in self.loads.values():
            count = 0
            for row in feeds.rows(self._client, loaded):
                _ADD.get(loaded.feed, _reason)(found, row)
                count += 1
            if count != loaded.rows:
                return None
        if "people" in self.loads:
            found.as_of = self.loads["people"].loaded_at
        self._taken = self.loads
        return found

    def close(self) -> None:
        self._client.disconnect()


_WHAT = {feeds.KINDS[table]: what for table, what in REASONS.items()}


def _person(found: Feeds, row: feeds.Row) -> None:
    subject, role, department, surname, household, patient, status, until = row
    known = Known(role, department, surname, household, patient, is_gone(status), until)
    found.add_person(subject, known)


def _patient(found: Feeds, row: feeds.Row) -> None:
    patient, surname, household, vip = row
    found.add_patient(patient, Chart(surname, household, bool(vip)))


def _reason(found: Feeds, row: feeds.Row) -> None:
    subject, department, patient, kind, begin, end, _ = row
    end = FOREVER if end >= feeds.END else end
    if kind == "census":
        found.add_stay(department, patient, begin, end)
    else:
        found.add_reason(subject, patient, begin, end, _WHAT.get(kind, str(kind)))


_ADD = {"people": _person, "patients": _patient}
