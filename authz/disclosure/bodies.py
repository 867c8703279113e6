"""The bodies we read: one JSON document, or JSON a line. What is held is bounded."""

import json
import re
from typing import Any, NoReturn

import orjson

from authz.disclosure.entries import Entries
from authz.disclosure.fhir import items, read_entry, read_resource
from authz.disclosure.findings import Findings, UnreadableError
from authz.disclosure.rules import RouteRules
from authz.record.fhir import RESOURCE_TYPES

SMALL = 256 * 1024  # a larger Bundle is read entry by entry
WHOLE = 4 * 1024 * 1024  # the most of anything else that is held at once
_MAX_MALFORMED = 1000  # lines; then the rest is not JSON a line either
_BOM = b"\xef\xbb\xbf"
_FIRST_TYPE = re.compile(rb'"resourceType"\s*+:\s*+"([A-Za-z]*+)"')


class Values:
    """Reads parsed values: FHIR, or by the route's rules. `fhir`: the content type says FHIR;
    `named`: the upstream has named the patients itself, so that no rule is needed."""

    def __init__(self, findings: Findings, rules: RouteRules, *, fhir: bool, named: bool) -> None:
        self._findings = findings
        self._rules = rules
        self._fhir = fhir
        self._named = named

    def read(self, value: Any) -> None:
        kind = value.get("resourceType") if isinstance(value, dict) else None
        if isinstance(kind, str):
            read_resource(value, self._findings)
        if self._rules and kind not in RESOURCE_TYPES:
            self._rules.read(value, self._findings)
        elif not isinstance(kind, str) and (self._fhir or not self._named):
            self._findings.fail("malformed" if self._fhir else "no_rule")


class Document:
    """One JSON document: whole, or a large Bundle entry by entry."""

    def __init__(self, findings: Findings, values: Values) -> None:
        self._findings = findings
        self._values = values
        self._held = bytearray()
        self._looked = False
        self._entries: Entries | None = None

    def take(self, step: bytes) -> None:
        if self._entries:
            self._read_entries(self._entries, step)
            return
        self._held += step
        if len(self._held) > SMALL and not self._looked:
            self._looked = True
            if self._begins_bundle():
                self._entries = Entries(WHOLE)
                held = bytes(self._held)
                self._held.clear()
                self._read_entries(self._entries, held)
        elif len(self._held) > WHOLE:
            self._held.clear()
            raise UnreadableError("too_large")

    def end(self, *, cut: bool) -> None:
        if self._entries:
            if not cut:
                self._read_outside(self._entries)
            return
        held = bytes(self._held)
        if not held and not cut:
            return  # a coding around nothing
        try:
            value = parse(held)
        except UnreadableError as error:
            if self._begins_bundle():  # the entries that are whole were shown all the same
                self._read_entries(Entries(WHOLE), held)
            raise UnreadableError("cut" if cut else error.trouble) from None
        self._values.read(value)

    def _begins_bundle(self) -> bool:
        found = _FIRST_TYPE.search(self._held, 0, SMALL)
        return found is not None and found[1] == b"Bundle"

    def _read_entries(self, entries: Entries, step: bytes) -> None:
        for entry in entries.feed(step):
            if entry is None:
                self._findings.fail("too_large")
            else:
                read_entry(parse(entry), self._findings)

    def _read_outside(self, entries: Entries) -> None:
        """What was believed of the Bundle from its beginning is so, and nothing was left unread."""
        bundle = parse(entries.outside())
        if not isinstance(bundle, dict) or bundle.get("resourceType") != "Bundle":
            raise UnreadableError("malformed")
        left = items(bundle, "entry", self._findings)
        if left.count(None) != entries.taken:
            raise UnreadableError("malformed")
        for entry in left:
            if entry is not None:
                read_entry(entry, self._findings)


class Lines:
    """JSON a line (NDJSON)."""

    def __init__(self, findings: Findings, values: Values) -> None:
        self._findings = findings
        self._values = values
        self._held = bytearray()
        self._too_large = False
        self._malformed = 0

    def take(self, step: bytes) -> None:
        first, *others = step.split(b"\n")
        self._hold(first)
        for line in others:
            self._line(cut=False)
            self._hold(line)

    def end(self, *, cut: bool) -> None:
        self._line(cut=cut)

    def _hold(self, piece: bytes) -> None:
        if self._too_large:
            return
        self._held += piece
        if len(self._held) > WHOLE:
            self._too_large = True
            self._held.clear()
            self._findings.fail("too_large")

    def _line(self, *, cut: bool) -> None:
        line, self._too_large = bytes(self._held), False
        self._held.clear()
        if not line.strip():
            return
        try:
            value = parse(line)
        except UnreadableError as error:
            self._findings.fail("cut" if cut else error.trouble)
            self._malformed += 1
            if self._malformed > _MAX_MALFORMED:
                raise
        else:
            self._values.read(value)


def parse(text: bytes) -> Any:
    """JSON, whatever the size of its numbers. Raises `UnreadableError`."""
    text = text.removeprefix(_BOM)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:  # numbers and lone surrogates that orjson refuses, and JSON has
        return json.loads(
            text.decode(), parse_int=str, parse_float=_no_number, parse_constant=_refuse
        )
    except (ValueError, RecursionError):
        raise UnreadableError("malformed") from None


def _no_number(_: str) -> float:
    return 0.5  # no identifier is one


def _refuse(_: str) -> NoReturn:
    raise ValueError
