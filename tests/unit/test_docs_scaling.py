"""The sizing in docs/scaling.md follows from its inputs."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
INPUTS = dict(re.findall(r"^\| `(\w+)` \| (\S+)", TEXT, re.MULTILINE))
RESULTS = re.findall(
    r"^\| ([^|`]+|`state.json`[^|]+) \| `([^`]+)` \| ([^|]+) \|$", TEXT, re.MULTILINE
)


@pytest.mark.parametrize(("name", "formula", "told"), RESULTS)
def test_results_follow(name, formula, told):
    """Each result is its formula's, to three digits; it is open while one of its inputs is."""
    used = {word: INPUTS[word] for word in re.findall(r"[a-z_]+[a-z]", formula)}
    if "to" in used.values():
        assert told == "to measure"
        return
    value = eval(formula, {word: float(number) for word, number in used.items()})  # noqa: S307
    assert f"{float(told):.3g}" == f"{value:.3g}", name


def test_all_is_there():
    """Every input is used, and every row of the results was read."""
    assert len(RESULTS) == TEXT.count("| to measure |\n") + 7
    formulas = " ".join(formula for _, formula, _ in RESULTS)
    assert [name for name in INPUTS if name not in formulas] == []
