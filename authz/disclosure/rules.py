"""The operator's rules for JSON that is not FHIR: JSONPath expressions (RFC 9535) that give
patients' identifiers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jsonpath import JSONPath, JSONPathEnvironment, JSONPathError

from authz.disclosure.fhir import patient_in
from authz.disclosure.findings import Findings
from authz.errors import UsageError


@dataclass(frozen=True, slots=True)
class Rule:
    """`path` is a path template, or the beginning of some, as the operator names them; each of
    `patients` is an expression such as ``$.notes[*].patient_id``; a body that the rule reads is
    counted under `resource_type`, if that is given."""

    path: str
    patients: tuple[str, ...]
    resource_type: str = ""


class Rules:
    """Compiled once. Raises `UsageError` for an expression that is none."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        environment = JSONPathEnvironment(strict=True)
        self._rules = [(rule, _compiled(environment, rule)) for rule in rules]

    def of(self, template: str) -> "RouteRules":
        """Those for a route: every rule whose path is `template` or begins it."""
        return RouteRules(
            [
                (rule, paths)
                for rule, paths in self._rules
                if (template + "/").startswith(rule.path.rstrip("/") + "/")
            ]
        )


class RouteRules:
    def __init__(self, rules: Sequence[tuple[Rule, Sequence[JSONPath]]]) -> None:
        self._rules = rules

    def __bool__(self) -> bool:
        return bool(self._rules)

    def read(self, value: Any, findings: Findings) -> None:
        if not isinstance(value, dict | list):  # the library would parse text as JSON
            findings.fail("malformed")
            return
        for rule, paths in self._rules:
            if rule.resource_type:
                findings.count(rule.resource_type)
            for path in paths:
                _find(path, value, findings)


def _find(path: JSONPath, value: Any, findings: Findings) -> None:
    try:
        for match in path.finditer(value):
            found = match.obj
            if found is not None:
                reference = patient_in(found) if isinstance(found, str) else None
                findings.name(reference or found)
    except (JSONPathError, RecursionError):
        findings.fail("malformed")


def _compiled(environment: JSONPathEnvironment, rule: Rule) -> list[JSONPath]:
    if not rule.path.startswith("/"):
        raise UsageError(f"disclosure rule {rule.path!r}: path: give a path that begins with /")
    if not rule.patients:
        raise UsageError(
            f"disclosure rule {rule.path}: patients: name at least one JSONPath expression, "
            "such as $.patient_id"
        )
    compiled = []
    for expression in rule.patients:
        try:
            path = environment.compile(expression)
        except (JSONPathError, RecursionError) as error:
            raise UsageError(
                f"disclosure rule {rule.path}: patients: {expression!r} is no JSONPath expression "
                f"(RFC 9535): {error.args[0]}; write one such as $.notes[*].patient_id"
            ) from None
        assert isinstance(path, JSONPath)  # strict: no unions of expressions
        compiled.append(path)
    return compiled
