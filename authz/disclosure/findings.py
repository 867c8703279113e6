"""What is found in one answer while it is read."""

from dataclasses import dataclass

MAX_IDENTIFIER = 256  # characters; FHIR's own ids have at most 64
_MAX_LINK = 512


@dataclass(frozen=True, slots=True)
class Seen:
    """`patients` are identifiers in clear, distinct, in order of first sight; the caller makes
    tokens of them. `types` counts FHIR resource types (``other``: none of R4's); a Bundle counts
    as its entries. `trouble` is empty, or the first reason why patients may be missing:

    - ``too_large``: more than the bounds allow to be read
    - ``encoding``: a content coding that is unknown, broken, or a bomb
    - ``content_type``: nothing we read
    - ``no_rule``: JSON that is not FHIR, on a route without a rule
    - ``malformed``: not what its content type says, or nested too deeply
    - ``cut``: the stream ended before the response did
    - ``too_many``: more distinct patients, or links between entries, than the bound
    - ``reference``: a patient is meant, but not by an identifier
    - ``fault``: a fault of this package
    """

    patients: tuple[str, ...]
    types: dict[str, int]
    trouble: str

    @property
    def complete(self) -> bool:
        return not self.trouble


class UnreadableError(Exception):
    """The rest of a body cannot be read; `trouble` is one of the words of `Seen`."""

    def __init__(self, trouble: str) -> None:
        super().__init__(trouble)
        self.trouble = trouble


class Findings:
    """Collects; bounded by `max_patients` patients, and as many links each way."""

    def __init__(self, max_patients: int) -> None:
        self.trouble = ""
        self._max = max_patients
        self._patients: dict[str, None] = {}
        self._types: dict[str, int] = {}
        self._links: set[str] = set()
        self._sought: set[str] = set()

    def fail(self, trouble: str) -> None:
        self.trouble = self.trouble or trouble

    def name(self, identifier: object) -> None:
        """`identifier` as the body has it: text, or a whole number in JSON that is not FHIR."""
        if isinstance(identifier, int) and not isinstance(identifier, bool):
            identifier = str(identifier)
        if not isinstance(identifier, str) or not 0 < len(identifier) <= MAX_IDENTIFIER:
            self.fail("reference")
        elif identifier in self._patients:
            pass
        elif len(self._patients) < self._max:
            self._patients[identifier] = None
        else:
            self.fail("too_many")

    def count(self, kind: str) -> None:
        self._types[kind] = self._types.get(kind, 0) + 1

    def link(self, url: str) -> None:
        """The entry that `url` points to is in this answer, and is read for itself."""
        self._remember(self._links, url)

    def seek(self, url: str) -> None:
        """`url` may point to a patient: trouble, unless its entry is in this answer."""
        self._remember(self._sought, url)

    def _remember(self, urls: set[str], url: str) -> None:
        if len(url) > _MAX_LINK:
            if urls is self._sought:
                self.fail("reference")
        elif len(urls) < self._max or url in urls:
            urls.add(url)
        else:
            self.fail("too_many")

    def seen(self) -> Seen:
        if not self._sought <= self._links:
            self.fail("reference")
        return Seen(tuple(self._patients), dict(self._types), self.trouble)
