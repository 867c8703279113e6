"""docs/policy-library.md is true: OPA decides each of its examples as it says, and each reason that
the policy can give stands in it."""

import json
import re
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from deciding import POLICY, decide_with_opa, input_document

from authz.demo.people import PEOPLE, Person, Request

pytestmark = pytest.mark.opa

PAGE = Path(__file__).parents[2] / "docs" / "policy-library.md"
SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
)
JWT = "envoy.filters.http.jwt_authn"
SUBJECTS = {person.sub: name for name, person in PEOPLE.items()}
JUNIPER = Person("juniper", "c.juniper", ("care_coordinator",), "lakeside", "HOPERAT")


def merged(data, more):
    """`more` laid over `data`, table by table."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            merged(data[key], value)
        else:
            data[key] = value
    return data


def examples(text):
    """The lines of the section's examples: who, request, circumstance, answer, reason."""
    blocks = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [re.split(r"\s{2,}", line) for block in blocks for line in block.splitlines()]


def asked(who, request, circumstance):
    """What the policy sees of an example."""
    method, path = request.split(" ")
    kind, _, value = circumstance.partition(" ")
    headers = dict([value.split(": ", 1)]) if kind == "header" else {}
    document = input_document(Request(SUBJECTS.get(who), method, path, headers))
    attributes = document["attributes"]
    attributes["request"]["http"]["host"] = value if kind == "host" else "fhir.example"
    if kind == "from":
        attributes["source"] = {"address": {"socketAddress": {"address": value}}}
    if kind == "time":
        attributes["request"]["time"] = {"seconds": int(datetime.fromisoformat(value).timestamp())}
    if kind == "finding":
        document["authz"] = {"risk": {"lane": value, "rules": ["bulk_read"], "since": 1}}
    if kind == "claim":
        name, text = value.split("=", 1)
        claims = attributes["metadataContext"]["filterMetadata"][JWT]["verified_jwt"]
        claims[name] = [text] if name == "roles" else text
    return document


@pytest.fixture(autouse=True)
def _with_juniper(monkeypatch):
    monkeypatch.setitem(PEOPLE, "juniper", JUNIPER)
    monkeypatch.setitem(SUBJECTS, JUNIPER.sub, "juniper")


@pytest.mark.parametrize("title", [title for title, text in SECTIONS.items() if examples(text)])
def test_examples(opa, tmp_path, title):
    """With the section's tables, its requests are answered as it says, for the reason it says."""
    policy = Path(shutil.copytree(POLICY, tmp_path / "policy"))
    shutil.copy(POLICY.parent / "opa-clock" / "clock.rego", policy)
    data = json.loads((policy / "data.json").read_text())
    for block in re.findall(r"^```json\n(.*?)^```$", SECTIONS[title], re.MULTILINE | re.DOTALL):
        merged(data, json.loads(block))
    (policy / "data.json").write_text(json.dumps(data))
    lines = examples(SECTIONS[title])
    decisions = decide_with_opa(opa, policy, [asked(*line[:3]) for line in lines])
    said = [("yes" if d["allowed"] else "no", d["audit"]["reason"]) for d in decisions]
    assert said == [(answer, reason) for *_, answer, reason in lines]


def test_every_section_tells_all_of_it():
    """Each rule says what it allows, what it denies, and what to check each year."""
    assert len(SECTIONS) >= 12
    for title, text in SECTIONS.items():
        assert all(f"**{word}**" in text for word in ("Allows", "Denies", "Each year")), title
        assert examples(text), title


def test_every_reason_is_told():
    """A reason that the policy gives as it stands in its text is on the page."""
    text = " ".join(PAGE.read_text().split())
    rules = "".join(path.read_text() for path in POLICY.glob("*.rego") if "_test" not in path.name)
    reasons = {
        *re.findall(r'else := "([^"]+)" if', rules),
        *re.findall(r'refusals contains "([^"]+)"', rules),
        *re.findall(r'any_of\(\w+\), "([^"]+)"\]', rules),
        *re.findall(r'^\w+ := "([^"]{10,})" if', rules, re.MULTILINE),
    }
    assert len(reasons) > 15
    assert [reason for reason in sorted(reasons) if reason not in text] == []
