"""What is kept beside the log, held against the records that name it.

What is gone is no finding: sealed inputs expire. What is there must be what the record says. Only
rows that belong to the records seen are read, and the database hashes them.
"""

from collections.abc import Iterator, Sequence

from authz.record import Record
from authz.verify.source import Logs


class Attachments:
    """One log's. Each check yields the index of a record and what is wrong with its attachment."""

    def __init__(self) -> None:
        self._sealed: dict[int, tuple[str, str]] = {}
        self._revisions: dict[str, int] = {}  # each with the first record that has it

    def add(self, record: Record, index: int) -> None:
        if "sealed" in record:
            named = (str(record.get("decision_id", "")), str(record["sealed"]))
            self._sealed.setdefault(index, named)
        if "policy_revision" in record:
            self._revisions.setdefault(str(record["policy_revision"]), index)

    def sealed(self, found: Sequence[tuple[int, str, str]]) -> Iterator[tuple[int, str]]:
        """`found` are the sealed inputs of the records added since the last call."""
        for index, decision_id, digest in found:
            if (decision_id, digest) != self._sealed.get(index, ("", "")):
                yield index, "the sealed input kept for it is not the one that it names"
        self._sealed.clear()

    def policies(self, source: Logs) -> Iterator[tuple[int, str]]:
        """The archived texts of the revisions that the records added name."""
        for revision in source.wrong_policies(list(self._revisions)):
            text = f"the archived text of policy {revision} is another"
            yield self._revisions[revision], text
