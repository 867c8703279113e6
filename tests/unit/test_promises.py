"""Each promise of the threat model is held by the tests that it names."""

import ast
import re

import pytest
from programs import CHECKOUT

DOCS = CHECKOUT / "docs"
_NAMED = re.compile(r"`((?:unit|e2e|faults|fuzz|interop)/[\w/]+\.py)::(test_\w+)`")


def _tests(path: str) -> set[str]:
    """The tests of a module, as pytest would collect them."""
    tree = ast.parse((CHECKOUT / "tests" / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {one.name for one in tree.body if isinstance(one, functions)}


@pytest.fixture(scope="module")
def model() -> str:
    return (DOCS / "threat-model.md").read_text()


def test_each_named_test_is_there(model):
    """No promise rests on a test that was renamed or removed."""
    named = _NAMED.findall(model)
    assert len(named) > 80
    tests = {path: _tests(path) for path in {path for path, _ in named}}
    assert [f"{path}::{name}" for path, name in named if name not in tests[path]] == []


def test_each_promise_names_a_test(model):
    """Every row of every table does, and every boundary says what is not promised."""
    rows = [line for line in model.splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith("| Promise")]
    assert [row for row in promises if not _NAMED.search(row)] == []
    boundaries = re.findall(r"^## \d+\. .*?(?=^## )", model, re.MULTILINE | re.DOTALL)
    assert len(boundaries) == 12
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
    for paragraph, done, evidence, *_ in rows:
        assert done, paragraph
        assert re.search(r"`authz |\]\(|notices|the same", evidence), paragraph
