"""Makes authz/disclosure/patient_r4.json from HL7's two published files; see README.md here."""

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROW = re.compile(r'<a href="\w+\.html">(\w+)</a></td><td>([^<]+)</td>')
PATH = re.compile(r"([A-Z]\w+)((?:\.[a-z]\w*)+?)(\.where\(resolve\(\) is Patient\))?")
# R4 has these search parameters, but not in its compartment. Task: R5's compartment has them.
# List: a ward's list of patients names them as its items.
ADDED = {"Task": ["patient", "focus"], "List": ["item"]}
WHOSE = ("subject", "patient", "for")
SOURCE = (
    "HL7 FHIR R4 4.0.1 (CC0): CompartmentDefinition/patient and the search parameters it names; "
    "made by tests/vectors/fhir_r4/derive.py. Added: Task (as in R5), List.entry.item."
)


def parameters_of(compartment: dict[str, Any]) -> dict[str, list[str]]:
    """Each resource type's search parameters, from the table in the definition's narrative."""
    assert compartment["version"] == "4.0.1"
    rows = ROW.findall(compartment["text"]["div"])
    codes_of = {kind: re.split(r",\s*", codes) for kind, codes in rows}
    for kind, codes in ADDED.items():
        codes_of.setdefault(kind, []).extend(codes)
    return codes_of


def paths_of(kind: str, parameter: dict[str, Any]) -> dict[str, bool]:
    """The elements of `kind` that `parameter` reads, and whether one says whose the resource is."""
    found = {}
    for expression in parameter["expression"].split("|"):
        match = PATH.fullmatch(expression.strip())
        if expression.strip().startswith(kind + "."):
            assert match, expression  # an expression of another form: teach this script first
            path = match[2][1:]
            only = parameter["target"] == ["Patient"] and not match[3]
            found[path] = only or path.rpartition(".")[2] in WHOSE
    assert found, (kind, parameter["id"])
    return found


def derive(compartment: dict[str, Any], published: dict[str, Any]) -> dict[str, Any]:
    by_code = {
        (kind, entry["resource"]["code"]): entry["resource"]
        for entry in published["entry"]
        for kind in entry["resource"]["base"]
    }
    whose: dict[str, dict[str, bool]] = {}
    for kind, codes in sorted(parameters_of(compartment).items()):
        paths = whose.setdefault(kind, {})
        for code in codes:
            paths.update(paths_of(kind, by_code[kind, code]))
    return {
        "source": SOURCE,
        "about": {
            kind: [p for p, is_about in paths.items() if is_about] for kind, paths in whose.items()
        },
        "other": {
            kind: [p for p, is_about in paths.items() if not is_about]
            for kind, paths in whose.items()
        },
    }


def main(compartment: str, published: str) -> None:
    derived = derive(
        json.loads(Path(compartment).read_text()), json.loads(Path(published).read_text())
    )
    print(json.dumps(derived, indent=1))


if __name__ == "__main__":
    main(
        *(
            sys.argv[1:]
            or [
                str(HERE / "compartmentdefinition-patient.json"),
                str(HERE / "search-parameters.json"),
            ]
        )
    )
