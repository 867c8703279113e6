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
    """Each result is its formula's, to three digits."""
    used = {word: float(INPUTS[word]) for word in re.findall(r"[a-z_]+[a-z]", formula)}
    value = eval(formula, used)  # noqa: S307 - the page is ours
    assert f"{float(told):.3g}" == f"{value:.3g}", name


def test_all_is_there():
    """Every input is used, and every row of the results was read."""
    table = TEXT.partition("| Result |")[2].partition("\n\n")[0]
    assert len(RESULTS) == table.count("\n") - 1 > 0
    formulas = " ".join(formula for _, formula, _ in RESULTS)
    assert [name for name in INPUTS if name not in formulas] == []
