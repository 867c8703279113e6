"""The embedded engine decides as OPA does, or says that it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from authz.policy.iteration import lost, modern

HEAD = """package envoy.authz.p{number}

import rego.v1

default allow := false

allow if {{
{body}
}}

denied if {{
{body}
}}

else_allow if not denied

holds := [allow, else_allow] if true

default else_allow := false

names := input.names

levels := input.levels

known := {{name | some name in input.known}}

rules := input.rules
"""
# In the input, since OPA refuses to compare what it knows to be of two types.
TABLES = {
    "names": ["physician", "nurse"],
    "levels": {"physician": "one", "nurse": "two"},
    "known": ["nurse"],
    "rules": [{"path": "/x", "roles": ["clerk"]}, {"path": "/y", "roles": ["q", "nurse"]}],
}
INPUTS = [
    {**TABLES, "roles": ["x", "nurse"], "role": "nurse", "numbers": [1, 2], "path": "/y"},
    {**TABLES, "roles": ["clerk"], "role": "clerk", "numbers": [], "path": "/x"},
    {**TABLES, "roles": ["nurse", "clerk"], "role": "q", "numbers": [2, 1], "path": "/x"},
    {},
]
RANGING = (
    "input.roles[_]", "input.roles[i]", "input.roles[j]", "names[_]", "names[i]", "names[j]",
    "rules[_].roles[_]", "rules[i].roles[_]", "rules[i].path", "rules[i].roles[j]", "levels[k]",
)  # fmt: skip
PLAIN = ('"nurse"', "input.role", "names[1]", "input.path", '"/y"')
LOST = [
    "input.roles[_] == names[_]",
    "input.roles[i] == names[j]",
    'startswith(input.roles[_], "n")',
    'startswith(input.roles[i], "n")',
    "known[input.roles[i]]",
    "input.roles[i] in names",
    '"nurse" in rules[_].roles',
    '[input.roles[i], 1] == ["nurse", 1]',
    "x := [input.roles[i], names[j]]",
    "not denied with input.role as input.roles[i]",
    "every x in [input.roles[_]] { x }",
    "count([x | x := lower(names[i])]) > 0",
    "x := input.roles[_]\nknown[x]",
    "x := input.roles[i]\nlower(x) == x\nlevel := levels[x]",
    "names[i] = rules[i].roles[j]",
    "some i, j; input.numbers[i] < input.numbers[j]",
]
KEPT = [
    'input.roles[_] == "nurse"',
    'rules[_].roles[_] == "nurse"',
    "some x in rules[_].roles\nx in input.roles",
    "x := input.roles[_]\ny := names[_]\nx == y",
    "x = input.roles[_]\nknown[x]",
    "input.roles[_] = names[_]",
    'rules[i].path == input.path\n"nurse" in rules[i].roles',
    "count({x | x := input.roles[_]} & {x | some x in names}) > 0",
    "x := input.roles[_]\nnot known[x]",
    'count({"a": [1, 2]}) == 1',
    'x := "names[_] == input.roles[_]"\nx != ""',
]
SEED = int(os.environ.get("AUTHZ_TEST_SEED", "8"))
POLICIES = int(os.environ.get("AUTHZ_TEST_POLICIES", "60"))


def body(random: Random) -> str:
    """Some lines of a rule, each safe by Rego's rules."""
    lines, names = [], []
    for number in range(random.randint(1, 3)):
        new = f"x{number}"
        one, other, plain = random.choice(RANGING), random.choice(RANGING), random.choice(PLAIN)
        forms = [
            one, f"{one} == {plain}", f"{plain} == {one}", f"{one} == {other}",
            f"{one} = {other}", f'startswith({one}, "n")', f"{one} in names", f"known[{one}]",
            f"{new} := {one}", f"{new} := {one}", f"{new} = {one}", f"some {new} in input.roles",
            f"some {new} in rules[i].roles", f"{new} := [{one}, {plain}]",
            f"count([y | y := {one}; y == {other}]) > 0", f"{new} := lower({one})",
            f"count({{y | some y in names; y == {one}}}) > 0",
            f"every y in names {{ y != {plain} }}",
        ]  # fmt: skip
        for name in names:
            forms += [
                f"known[{name}]", f"not known[{name}]", f"{name} in names", f"{name} == {plain}",
                f"{new} := levels[{name}]", f'levels[{name}] > "onf"', f"{name} == {one}",
                f'startswith({name}, "n")', f"not {name} in input.roles",
            ]  # fmt: skip
        line = random.choice(forms)
        lines.append(line)
        if new in line and ":= [" not in line:
            names.append(new)
    return "\n".join(f"\t{line}" for line in lines)


CHILD = """
import asyncio, json, sys, time
from pathlib import Path
from authz.errors import UsageError
from authz.policy.embedded import EmbeddedEngine

async def main(directory, done):
    inputs = json.loads((directory / "inputs.json").read_text())
    for path in sorted(directory.glob("*.rego"))[done:]:
        engine = EmbeddedEngine(path, f"envoy/authz/{path.stem}/holds")
        try:
            await engine.start()
        except UsageError as error:
            found = str(error)
        else:
            found = engine.decide(inputs, time.monotonic() + 60).outcomes
        print(json.dumps([path.stem, found]), flush=True)
        await engine.close()

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


def embedded(directory: Path) -> dict[str, object]:
    """What each policy decides, or why it is refused; a policy that ends the process is named."""
    found: dict[str, object] = {}
    total = len(list(directory.glob("*.rego")))
    while len(found) < total:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(directory), str(len(found))],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        answers = [json.loads(line) for line in done.stdout.splitlines() if line[:3] == '["p']
        found |= dict(answers)
        if len(found) < total:
            stem = sorted(path.stem for path in directory.glob("*.rego"))[len(found)]
            found[stem] = f"CRASH {done.returncode} {done.stderr[-300:]}"
    return found


@pytest.mark.opa
def test_as_opa_decides(opa, tmp_path):
    """Of many policies that range over things in many ways, each decides as OPA does, also under
    `not`, or is refused; none ends the process."""
    random = Random(SEED)
    bodies = {f"p{number:03}": body(random) for number in range(POLICIES)}
    for name, text in bodies.items():
        (tmp_path / f"{name}.rego").write_text(HEAD.format(number=name[1:], body=text))
    (tmp_path / "inputs.json").write_text(json.dumps(INPUTS))
    decided = embedded(tmp_path)
    refused = {name for name, found in decided.items() if isinstance(found, str)}
    assert {
        name: decided[name] for name in refused if "the embedded engine" not in str(decided[name])
    } == {}
    told = []
    for document in INPUTS:
        done = subprocess.run(
            [opa, "eval", "--format", "raw", "--stdin-input",
             *(f"--data={path}" for path in sorted(tmp_path.glob("*.rego"))), "data.envoy.authz"],
            input=json.dumps(document), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        told.append(json.loads(done.stdout))
    wrong = {
        bodies[name]: (found, [answers[name]["holds"] for answers in told])
        for name, found in decided.items()
        if name not in refused and found != [answers[name]["holds"] for answers in told]
    }
    assert wrong == {}
    assert 4 * len(refused) < 3 * len(bodies), "the embedded engine is of use"


@pytest.mark.parametrize("text", LOST)
def test_what_the_engine_loses(text):
    """Each form that the engine gets wrong is refused, with its line."""
    [(name, line, _), *_] = lost({"a.rego": HEAD.format(number=1, body=text)})
    assert name == "a.rego"
    assert line == 8 + text.count("\n")


@pytest.mark.parametrize("text", KEPT)
def test_what_the_engine_keeps(text):
    """What the engine does right is not refused."""
    assert list(lost({"a.rego": HEAD.format(number=1, body=text)})) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("deny[x] {\n\tx := 1\n}\n", "deny contains x if {\n\tx := 1\n}\n"),
        ('deny["no"]\n', 'deny contains "no"\n'),
        ("a[x] := 1 if { x := 2 }\n", "a[x] := 1 if { x := 2 }\n"),
        ("a[x] = 1 { x := 2 }\n", "a[x] = 1 { x := 2 }\n"),
        ("a[x] if { x := 2 }\n", "a[x] if { x := 2 }\n"),
        ("allow {\n\tdeny[_]\n}\n", "allow {\n\tdeny[_]\n}\n"),
    ],
)
def test_sets_of_rego_v0(old, new):
    """A set as Rego v0 writes it is read as a set, and nothing else is touched."""
    text = "package a\n\n{}\nb := 1\n"
    assert modern(text.replace("{}", old)) == text.replace("{}", new)
