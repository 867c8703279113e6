"""What is kept beside the log, held against the records that name it.

What is gone is no finding: sealed inputs expire. What is there must be what the record says. Only
rows that belong to the records seen are read, and the database hashes them.
"""

import itertools
from collections.abc import Iterator

from clickhouse_driver import Client

from authz.record import Record

_SEALED = (
    "SELECT index, decision_id, lower(hex(SHA256(ciphertext))) FROM sealed_originals"
    " WHERE origin = %(origin)s AND index >= %(first)s AND index < %(end)s ORDER BY index"
)
_POLICIES = "SELECT revision FROM policies WHERE lower(hex(SHA256(text))) != revision"
_REVISIONS = 1000  # asked about at once


class Attachments:
    """One log's. Each check yields the index of a record and what is wrong with its attachment."""

    def __init__(self, client: Client, origin: str) -> None:
        self._client = client
        self._origin = origin
        self._sealed: dict[int, tuple[str, str]] = {}
        self._revisions: dict[str, int] = {}  # each with the first record that has it

    def add(self, record: Record, index: int) -> None:
        if "sealed" in record:
            named = (str(record.get("decision_id", "")), str(record["sealed"]))
            self._sealed.setdefault(index, named)
        if "policy_revision" in record:
            self._revisions.setdefault(str(record["policy_revision"]), index)

    def sealed(self, first: int, end: int) -> Iterator[tuple[int, str]]:
        """The sealed inputs of the records `first` to `end`, which were all added."""
        values = {"origin": self._origin, "first": first, "end": end}
        for index, decision_id, digest in self._client.execute(_SEALED, values):
            if (decision_id, digest) != self._sealed.get(index, ("", "")):
                yield index, "the sealed input kept for it is not the one that it names"
        self._sealed.clear()

    def policies(self) -> Iterator[tuple[int, str]]:
        """The archived texts of the revisions that the records added name."""
        names = iter(self._revisions)
        while some := list(itertools.islice(names, _REVISIONS)):
            query = _POLICIES + " AND revision IN %(names)s"
            for (revision,) in self._client.execute(query, {"names": some}):
                text = f"the archived text of policy {revision} is another"
                yield self._revisions[revision], text
