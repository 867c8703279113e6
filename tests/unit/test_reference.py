"""The reference is made of the code: what is committed is what the code makes now."""

import re

from authz.config import Config
from authz.ledger import __all__ as ledger
from docs.reference.__main__ import HERE, pages


def test_the_pages_are_current():
    """Each page is the one that `make reference` writes, and no other page is beside them."""
    made = pages()
    assert {*HERE.glob("*.md")} == set(made)
    for path, text in made.items():
        assert path.read_text() == text, f"{path.name}: run `make reference`"


def test_nothing_is_left_out():
    """Every key and every public name of the ledger is told, each with what it means."""
    text = (HERE / "configuration.md").read_text()
    for name, field in Config.model_fields.items():
        section = type(field.default)
        for key in getattr(section, "model_fields", {}):
            assert f"\n| `{key}` | `AUTHZ_{name.upper()}__{key.upper()}` |" in text
    empty = re.findall(r"^\|.*\| +\|$", text, re.MULTILINE)
    assert empty == []
    api = (HERE / "api.md").read_text()
    assert set(re.findall(r"^### authz\.ledger\.(\w+)$", api, re.MULTILINE)) == set(ledger)
