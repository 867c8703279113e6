"""Each promise of the threat model is held by the tests that it names."""

import re

import pytest
from pages import named_in
from programs import CHECKOUT

DOCS = CHECKOUT / "docs"
_NAMED = re.compile(r"`((?:unit|e2e|faults|fuzz|interop)/[\w/]+\.py)::(test_\w+)`")


@pytest.fixture(scope="module")
def model() -> str:
    return (DOCS / "threat-model.md").read_text()


def test_each_named_test_is_there(model):
    """No promise rests on a test that was renamed or removed."""
    named = _NAMED.findall(model)
    assert len(named) > 80
    tests = {path: named_in(path) for path in {path for path, _ in named}}
    assert [f"{path}::{name}" for path, name in named if name not in tests[path]] == []


def test_each_promise_names_a_test(model):
    """Every row of every table does, and every boundary says what is not promised."""
    rows = [line for line in model.splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith("| Promise")]
    assert [row for row in promises if not _NAMED.search(row)] == []
    boundaries = re.findall(r"^## \d+\. .*?(?=^## )", model, re.MULTILINE | re.DOTALL)
    assert len(boundaries) == 14
    for boundary in boundaries:
        assert boundary.count("\n**Not promised.** ") == 1, boundary.splitlines()[0]


def test_each_paragraph_has_evidence():
    """The HIPAA page says of each paragraph what is done, what shows it, and what is left to do:
    a command, a page, or records of the log; the rest of what it names is checked elsewhere."""
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in (DOCS / "hipaa.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| Paragraph")
    ]
    assert len(rows) > 40
    for paragraph, done, evidence, yours in rows:
        assert done, paragraph
        assert re.search(r"`authz |\]\(|notices?|the same", evidence), paragraph
        assert yours, paragraph


REQUIRED = {  # 45 CFR 164, the required specifications that authz touches
    "164.308": "(a)(1)(ii)(A) (a)(1)(ii)(B) (a)(1)(ii)(C) (a)(1)(ii)(D) (a)(2) (a)(4)(ii)(A)"
    " (a)(6)(ii) (a)(7)(ii)(A) (a)(7)(ii)(B) (a)(7)(ii)(C) (a)(8)",
    "164.312": "(a)(1) (a)(2)(i) (a)(2)(ii) (b) (c)(1) (d) (e)(1)",
    "164.316": "(a) (b)(1) (b)(2)(i) (b)(2)(ii) (b)(2)(iii)",
    "164.528": "(a)(1) (a)(2) (a)(3) (b)(1) (b)(3) (b)(4) (c) (d)",
}


def test_no_required_paragraph_is_left_out():
    """Of the four sections that a reviewer goes through."""
    text = (DOCS / "hipaa.md").read_text()
    for section, paragraphs in REQUIRED.items():
        part = text.partition(f"\n## {section}:")[2].partition("\n## ")[0]
        firsts = [line[2:] for line in part.splitlines() if line.startswith("| (")]
        assert [one for one in paragraphs.split() if not _among(one, firsts)] == [], section


def _among(paragraph: str, firsts: list[str]) -> bool:
    return any(first.startswith((f"{paragraph} ", f"{paragraph},")) for first in firsts)
