"""`authz policy check` and `test`: what they say of a policy, and how they end."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

POLICY = Path(__file__).parents[2] / "deploy" / "opa"

pytestmark = pytest.mark.opa

HTTP = "input.attributes.request.http"


@pytest.fixture
def authz(opa):
    """The program, with OPA on its PATH or without."""

    def run(*line, with_opa=True):
        environment = {**os.environ, "COLUMNS": "300"}
        path = [str(Path(opa).parent)] if with_opa else []
        environment["PATH"] = os.pathsep.join([*path, "/usr/bin", "/bin"])
        done = subprocess.run(
            [sys.executable, "-m", "authz", "policy", *map(str, line)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture
def check(authz, tmp_path):
    """The exit code and the JSON of a check of one module's text."""

    def run(text):
        path = tmp_path / "policy.rego"
        path.write_text(f"package envoy.authz\n\n{text}\n")
        code, told = authz("check", "--policy", path, "--json")
        return code, json.loads(told)

    return run


def findings(told, kind):
    return [(each["level"], each["text"], each["at"]["line"]) for each in told[kind]]


def test_the_sample_policy(authz):
    """The sample policy is clean: cached, batched, a reason for everything, and what it reads is
    told with the places where it does."""
    code, told = authz("check", "--policy", POLICY, "--json")
    found = json.loads(told)
    assert code == 0
    assert (found["cached"], found["batched"], found["findings"]) == (True, True, [])
    places = {read["path"]: read["at"] for read in found["reads"]}
    [purpose] = [at for path, at in places.items() if "x-break-glass" in path]
    lines = {(at["file"], at["line"]) for at in purpose}
    text = (POLICY / "break_glass.rego").read_text().splitlines()
    assert any(file == "break_glass.rego" and "glass" in text[line - 1] for file, line in lines)
    assert f"{HTTP}.body" in places
    assert not any("authorization" in path or "id" in path.split(".") for path in places)


def test_why_it_cannot_be_cached(check):
    """Each path and builtin that stands in the way is named with its line."""
    code, told = check(
        f'allow if {HTTP}.headers[input.k] == "a"\n\nallow if {{\n\tx := {HTTP}.time\n\t'
        'time.now_ns() > 1\n\tx.seconds == 1\n}\n\nallow if rand.intn("x", 2) == 1'
    )
    assert code == 0
    assert (told["cached"], told["batched"]) == (False, False)
    said = findings(told, "uncached")
    for text, line in (("http.headers", 3), ("calls time.now_ns", 7), ("calls rand.intn", 11)):
        assert any(text in what and at == line for _, what, at in said), said
    [(_, what, line)] = findings(told, "alone")
    assert ("rand.intn" in what, line) == (True, 11)


DANGERS = {
    "a default": ("default allow := true\n\nallow := false if input.a", "default_allows", 3),
    "an object by default": (
        'default allow := {"allowed": true}\n\nallow := {"allowed": false} if input.a',
        "default_allows",
        3,
    ),
    "a default of what is called allowed": (
        'allow := {"allowed": ok, "audit": {"reason": "x"}}\n\ndefault ok := true',
        "default_allows",
        5,
    ),
    "no condition": ("allow := true", "always_allows", 3),
    "the last else": ("allow := false if input.a\n\nelse := true", "else_allows", 3),
}


@pytest.mark.parametrize(("text", "kind", "line"), DANGERS.values(), ids=DANGERS)
def test_dangers(check, text, kind, line):
    """An allow that needs no condition is a danger, is placed, and ends the command with 1."""
    code, told = check(text)
    dangers = [each for each in told["findings"] if each["level"] == "danger"]
    assert [(each["kind"], each["at"]["line"]) for each in dangers] == [(kind, line)]
    assert code == 1


REASONS = {
    "a boolean": ("allow if input.a", "warning"),
    "an object without audit": ('allow := {"allowed": true} if input.a', "warning"),
    "an audit without reason": (
        'allow := {"allowed": true, "audit": {"subject": "x"}} if input.a',
        "warning",
    ),
    "an empty reason": (
        'allow := {"allowed": true, "audit": {"reason": ""}} if input.a',
        "warning",
    ),
    "an audit made elsewhere": (
        'allow := {"allowed": true, "audit": a} if input.a\n\na := {"reason": input.b}',
        "note",
    ),
    "a decision made elsewhere": ("allow := d if input.a\n\nd := input.b", "note"),
    "a reason": ('allow := {"allowed": true, "audit": {"reason": "x"}} if input.a', None),
    "a computed reason": (
        'allow := {"allowed": true, "audit": {"reason": why}} if input.a\n\nwhy := input.b',
        None,
    ),
    "a union with a reason": (
        'allow := {"allowed": true, "audit": object.union(input.c, {"reason": "x"})} if input.a',
        None,
    ),
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize(("text", "level"), REASONS.values(), ids=REASONS)
def test_reasons(check, text, level):
    """A decision without a reason is named; where it cannot be seen, "may" is said."""
    code, told = check(text)
    found = [each for each in told["findings"] if each["kind"] == "no_reason"]
    assert [each["level"] for each in found] == ([level] if level else [])
    assert all(("may" in each["text"]) == (each["level"] == "note") for each in found)
    assert all(each["at"]["line"] == 3 for each in found)
    assert code == 0


@pytest.mark.thorough
def test_a_decision_in_parts(check):
    """A decision put together from rules is read part by part."""
    code, told = check("allow.allowed := true\n\nallow.headers := {}")
    assert code == 1
    assert {each["kind"] for each in told["findings"]} == {"always_allows", "no_reason"}
    code, told = check('allow.allowed if input.a\n\nallow.audit.reason := "x"')
    assert (code, told["findings"]) == (0, [])


def test_strictness_and_the_embedded_engine(authz, tmp_path):
    """What `opa check --strict` says, what the embedded engine lacks, and data that is too much for
    it are warnings with their places."""
    (tmp_path / "a.rego").write_text(
        "package envoy.authz\n\nimport data.b\n\nallow if {\n\tx := input.a\n\t"
        'net.cidr_contains("10.0.0.0/8", input.ip)\n}\n'
    )
    users = {f"user{number}": ["nurse"] * 4 for number in range(10_000)}
    (tmp_path / "data.json").write_text(json.dumps({"users": users}))
    code, told = authz("check", "--policy", tmp_path, "--json")
    assert code == 0
    said = {(each["kind"], each["at"]["file"], each["at"]["line"], each["text"][:40])
            for each in json.loads(told)["findings"]}  # fmt: skip
    assert ("strict", "a.rego", 3, "import data.b unused") in said
    assert ("strict", "a.rego", 6, "assigned var x unused") in said
    texts = {(file, text) for kind, file, _, text in said if kind == "embedded"}
    assert ("a.rego", "not for the embedded engine: net.cidr_co") in texts
    assert any(file == "data.json" and "KiB" in text for file, text in texts)


@pytest.mark.thorough
def test_on_a_server(authz, opa, tmp_path):
    """The address of a server is asked as it is, and without the program only lines are missing."""
    from authz.policy.opa_process import running
    from authz.policy.source import load

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(opa).parent), prepend=os.pathsep)
        with running(load(POLICY)) as url:
            with_lines, without = (
                authz("check", "--policy", url, "--json", with_opa=it) for it in (True, False)
            )
    files, server, bare = (json.loads(authz("check", "--policy", POLICY, "--json")[1]),
                           json.loads(with_lines[1]), json.loads(without[1]))  # fmt: skip
    assert server["reads"] == files["reads"]
    assert [read["path"] for read in bare["reads"]] == [read["path"] for read in files["reads"]]
    assert {at["line"] for read in bare["reads"] for at in read["at"]} == {0}


@pytest.mark.thorough
def test_what_cannot_be_checked(authz, tmp_path):
    """A policy that does not compile is 2, with the place; a decision it lacks too; no OPA is 3,
    with the mend."""
    wrong = tmp_path / "wrong.rego"
    wrong.write_text("package envoy.authz\n\nallow if y\n")
    code, told = authz("check", "--policy", wrong)
    assert (code, "wrong.rego:3" in told, "unsafe" in told) == (2, True, True)
    code, told = authz("check", "--policy", POLICY, "--decision", "envoy/authz/other")
    assert (code, "--decision envoy/authz/other" in told) == (2, True)
    code, told = authz("check", "--policy", POLICY, with_opa=False)
    assert (code, "go install" in told) == (3, True)
    code, told = authz("check", "--policy", f"unix://{tmp_path}/none.sock")
    assert (code, "does not answer" in told) == (3, True)


def test_the_table(authz):
    """A person sees the same in tables, with nothing cut off."""
    code, told = authz("check", "--policy", POLICY)
    assert code == 0
    assert 'headers["x-purpose-of-use"]' in told
    assert "decisions can be cached for a second: yes" in told


def test_tests_that_pass(authz):
    """The sample policy's tests pass, and --coverage says how much they reach."""
    code, told = authz("test", "--policy", POLICY)
    assert (code, "0 failed" in told, "coverage" in told) == (0, True, False)
    code, told = authz("test", "--policy", POLICY, "--coverage", "--json")
    found = json.loads(told)
    assert (code, found["passed"]) == (0, True)
    assert found["coverage"] > 90
    files = {test["file"] for test in found["tests"]}
    assert files == {path.name for path in POLICY.glob("*_test.rego")}
    assert all(test["line"] for test in found["tests"])


OLD = """package envoy.authz

import input.attributes.request.http as http_request

default allow = false

allow {
    http_request.method == "GET"
    roles[_] == "nurse"
}

roles[role] { role := input.parsed_query.role[_] }
"""


@pytest.mark.thorough
def test_rego_before_opa_1(authz, tmp_path):
    """A policy as it was written before OPA 1.0 is checked and tested as it is."""
    (tmp_path / "policy.rego").write_text(OLD)
    (tmp_path / "policy_test.rego").write_text(
        "package envoy.authz\n\ntest_nobody { not allow with input as {} }\n"
    )
    code, told = authz("check", "--policy", tmp_path, "--json")
    found = json.loads(told)
    assert code == 0, told
    reads = {read["path"]: read["at"] for read in found["reads"]}
    assert reads[f"{HTTP}.method"] == [{"file": "policy.rego", "line": 8}]
    code, told = authz("test", "--policy", tmp_path)
    assert code == 0, told
    assert "1 passed" in told


def test_tests_that_fail(authz, tmp_path):
    """A failing test is named with file and line, and ends the command with 1."""
    policy = Path(shutil.copytree(POLICY, tmp_path / "policy"))
    text = (policy / "policy_test.rego").read_text()
    (policy / "policy_test.rego").write_text(text + "\ntest_wrong if 1 == 2\n")
    code, told = authz("test", "--policy", policy)
    line = text.count("\n") + 2
    assert (code, f"test_wrong at policy_test.rego:{line}" in told) == (1, True)
    code, told = authz("test", "--policy", policy, "--json", "--coverage")
    found = json.loads(told)
    assert (code, found["passed"], found["coverage"]) == (1, False, None)
    assert [t["name"] for t in found["tests"] if t["outcome"] == "failed"] == ["test_wrong"]


@pytest.mark.thorough
def test_tests_that_cannot_run(authz, tmp_path):
    """A policy that does not compile is 2, none at all too; no OPA is 3, with the mend."""
    (tmp_path / "a.rego").write_text("package a\n\nallow if y\n")
    code, told = authz("test", "--policy", tmp_path)
    assert (code, "a.rego:3" in told) == (2, True)
    (tmp_path / "a.rego").write_text("package a\n\nallow if input.y\n")
    code, told = authz("test", "--policy", tmp_path)
    assert (code, "no tests there" in told) == (2, True)
    code, told = authz("test", "--policy", POLICY, with_opa=False)
    assert (code, "go install" in told) == (3, True)
