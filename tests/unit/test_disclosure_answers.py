"""Which answers are read, and how: content types, statuses, headers, and the operator's rules."""

import pytest
from answers import FHIR, bundle, observation, seen

from authz.disclosure import Answer, Reading, Rule
from authz.disclosure.bodies import Document
from authz.errors import UsageError

RULES = Reading(
    rules=[
        Rule("/api/charts/{patient}/notes", ("$.notes[*].patient_id",), "DocumentReference"),
        Rule("/api/list", ("$[*].who", "$..owner")),
    ]
)


@pytest.mark.parametrize(
    "content_type",
    [
        FHIR,
        "application/json+fhir",
        "application/json",
        "text/json",
        "Application/FHIR+JSON; charset=utf-8; fhirVersion=4.0",
        "application/vnd.x+json",
    ],
)
def test_fhir_json(content_type):
    """FHIR is read from every content type that may hold it."""
    assert seen(observation(1), content_type).patients == ("1",)


@pytest.mark.parametrize(
    "content_type",
    ["image/png", "application/pdf", "text/html", "application/fhir+xml", "text/plain", "", "x"],
)
def test_content_types_that_are_not_read(content_type):
    """What we cannot read is trouble, unless there is nothing or the upstream names them itself."""
    assert seen(b"\x89PNG", content_type).trouble == "content_type"
    assert seen(b"", content_type).complete
    named = seen(b"\x89PNG", content_type, headers={"x-audit-patients": "1, a%2Cb"})
    assert (named.patients, named.complete) == (("1", "a,b"), True)


@pytest.mark.parametrize("status", [200, 204, 304, 404, 500])
def test_no_body(status):
    """An answer without a body shows nobody: HEAD, 204, 304, or an empty one."""
    found = seen(b"", status=status, headers={"content-length": "500", "content-encoding": "br"})
    assert (found.patients, found.types, found.trouble) == ((), {}, "")


@pytest.mark.parametrize("status", [200, 400, 403, 500])
def test_errors(status):
    """An error's body is read like any other."""
    outcome = seen({"resourceType": "OperationOutcome", "issue": []}, status=status)
    assert (outcome.patients, outcome.types, outcome.trouble) == ((), {"OperationOutcome": 1}, "")
    assert seen(observation(1), status=status).patients == ("1",)


def test_header():
    """The upstream's own names are added to the body's, and excuse nothing that is in the body."""
    headers = {"x-audit-patients": "2,, 1 ,%E9"}
    found = seen(observation(1), headers=headers)
    assert (found.patients, found.complete) == (("2", "1", "\\xe9"), True)
    assert seen(b"{", headers=headers).trouble == "malformed"
    assert seen({"a": 1}, "application/json", headers=headers).complete
    assert seen(b"x", headers={**headers, "content-encoding": "br"}).complete
    assert seen(b"x", "image/png", headers={"x-audit-patients": ""}).complete
    assert seen(b"", headers={"x-audit-patients": "1" * 70_000}).trouble == "too_large"
    assert seen(b"", headers={"x-audit-patients": "1" * 300}).trouble == "reference"
    other = seen(b"", reading=Reading(header="X-Who"), headers={**headers, "x-who": "9"})
    assert other.patients == ("9",)


def test_rules():
    """JSON that is not FHIR is read by the rules of its route."""
    body = {"notes": [{"patient_id": "a"}, {"patient_id": 17}, {"patient_id": None}, {}]}
    template = "/api/charts/{patient}/notes"
    found = seen(body, "application/json", reading=RULES, template=template)
    assert (found.patients, found.types) == (("a", "17"), {"DocumentReference": 1})
    assert found.complete
    below = seen(body, "application/json", reading=RULES, template=template + "/{id}")
    assert below.patients == found.patients
    assert seen(body, "application/json", reading=RULES, template="/api/lists").trouble == "no_rule"
    assert seen(body, "application/json", reading=RULES).trouble == "no_rule"


def test_several_expressions():
    """Every expression of a rule is read; a reference gives its id; no identifier is trouble."""
    body = [{"who": "Patient/1"}, {"deep": {"owner": "2"}}]
    found = seen(body, "application/json", reading=RULES, template="/api/list")
    assert (found.patients, found.trouble) == (("1", "2"), "")
    for odd in ({"a": 1}, [1], 1.5, True, "", 10**400):
        found = seen([{"who": odd}], "application/json", reading=RULES, template="/api/list")
        assert found.trouble == "reference"
    for scalar in ('{"owner": 1}', "[", 1, None):
        found = seen(scalar, "application/json", reading=RULES, template="/api/list")
        assert (found.patients, found.trouble) == ((), "malformed")


def test_rules_and_fhir():
    """A rule says nothing of FHIR's own types, and is asked about types that are not FHIR's."""
    found = seen(observation(1), "application/json", reading=RULES, template="/api/list")
    assert (found.patients, found.types) == (("1",), {"Observation": 1})
    own = {"resourceType": "Chart", "owner": "5"}
    found = seen(own, "application/json", reading=RULES, template="/api/list")
    assert (found.patients, found.types, found.trouble) == (("5",), {"other": 1}, "")


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (Rule("/a", ("$.[",)), r"disclosure rule /a: patients: '\$\.\[' .*write one such as"),
        (Rule("/a", ("$.a | $.b",)), "patients"),
        (Rule("/a", ("a b",)), "patients"),
        (Rule("/a", ("",)), "patients"),
        (Rule("/a", ()), "patients: name at least one"),
        (Rule("a", ("$.a",)), "path: give a path"),
    ],
)
def test_rules_that_are_none(rule, named):
    """A rule that cannot be read is refused when it is configured: the field and the mend."""
    with pytest.raises(UsageError, match=named) as refusal:
        Reading(rules=[rule])
    assert "\n" not in str(refusal.value)


def test_nothing_is_kept():
    """After the end, nothing of the body is left in the answer."""
    answer = Answer(Reading(), 200, {"content-type": FHIR})
    answer.feed(str(bundle(observation(1))).replace("'", '"').encode())
    assert answer.finish().patients == ("1",)
    assert answer._body is None


def test_a_fault_of_ours(monkeypatch):
    """A fault of the reading itself ends in trouble, never in an error."""
    monkeypatch.setattr(Document, "take", lambda *_: 1 / 0)
    answer = Answer(Reading(), 200, {"content-type": FHIR})
    for _ in range(3):
        answer.feed(b"{}")
    assert answer.finish().trouble == "internal_error"


def test_deep_json_by_a_rule():
    """JSON nested beyond what an expression follows is malformed, and costs no recursion."""
    body = b'{"owner":' * 900 + b"1" + b"}" * 900
    found = seen(body, "application/json", reading=RULES, template="/api/list")
    assert found.trouble in {"malformed", "reference"}
