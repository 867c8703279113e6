"""The embedded engine: what cannot decide is refused at once; no caller writes a decision."""

import asyncio
import base64
import contextlib
import hashlib
import json
import math
import tarfile
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authz.errors import UnavailableError, UsageError
from authz.policy.embedded import EmbeddedEngine
from authz.policy.verdict import UNDEFINED, PolicyError

HEAD = "package envoy.authz\nimport rego.v1\n"
ECHO = HEAD + "allow := input\n"
UNHURRIED = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Texts with which a caller would write into a decision, if text were not kept as text.
ATTEMPTS = (
    'a"]},"allowed":true,"z":{"y":["',
    'x"}, "allowed": true, "z": {"a":"b',
    '", "allowed": true, "x": "',
    '"',
    '""',
    '"allowed"',
    '\\"',
    "\\",
    '\\", "allowed": true, "x": "\\',
    "\\u0022, \\u0022allowed\\u0022: true, \\u0022x\\u0022: \\u0022",
    "\\u0022",
    "%s%d%v%%",
    "\n}\nallow := true\n",
    "`",
    "true",
    "null",
    "\0",
    "}}]]",
)


async def _ask(path, documents, query="envoy/authz/allow"):
    engine = EmbeddedEngine(path, query)
    try:
        await engine.start()
        return [_decided(engine, document) for document in documents]
    finally:
        await engine.close()


def _decided(engine, document):
    [outcome] = engine.decide([document], time.monotonic() + 60).outcomes
    return outcome


@pytest.fixture
def policy(tmp_path):
    """Writes one policy file."""

    def write(text, name="policy.rego"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def revision_of(path):
    async def run():
        engine = EmbeddedEngine(path, "envoy/authz/allow")
        await engine.start()
        await engine.close()
        return engine.revision

    return asyncio.run(run())


def decide(path, *documents):
    return asyncio.run(_ask(path, documents))


def refused(path, query="envoy/authz/allow"):
    with pytest.raises(UsageError) as raised:
        asyncio.run(_ask(path, [], query))
    text = str(raised.value)
    assert len(text.splitlines()) == 1, "one line"
    assert len(text) < 400
    return text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("package envoy.authz\nimport rego.v1\n\nallow := if {\n", ["policy.rego"]),
        ("allow := true\n", ["--decision"]),
        (HEAD + "allow := nobody_wrote_this(input.x)\n", ["policy.rego", "nobody_wrote_this"]),
        (HEAD + "allow if input.x\nallow if io.jwt.nothing(input.x)\n", ["io.jwt.nothing"]),
        (HEAD + "allow if data.lib.nothing(input.x)\n", ["data.lib.nothing"]),
        (HEAD + 'allow := http.send({"url": "http://x"}).status == 200\n', ["http.send", "OPA"]),
        (HEAD + 'allow := net.cidr_contains("10.0.0.0/8", input.ip)\n', ["net.cidr", "OPA"]),
        (HEAD + 'allow := time.weekday(1) == "Thursday"\n', ["time.weekday", "OPA"]),
        (HEAD + 'allow := time.clock([1, "UTC"])[0] == 0\n', ["time.clock", "OPA"]),
        (HEAD + "x := true\n", ["--decision envoy/authz/allow", "package envoy.authz"]),
        ("package other\nimport rego.v1\nallow := true\n", ["--decision envoy/authz/allow"]),
        ("", ["policy"]),
        ("not rego at all", ["--policy"]),
    ],
)
def test_what_cannot_decide(policy, text, said):
    """A policy that could never decide is refused at the start, in a line that names it."""
    shown = refused(policy(text))
    for part in said:
        assert part in shown


def test_the_line_is_named(policy):
    """An error of syntax is told with its file and line."""
    assert "policy.rego line 4" in refused(policy(HEAD + "\nallow := := true\n"))


def test_missing_path(tmp_path):
    """A path that is not there, or holds no policy, is named."""
    assert str(tmp_path / "absent") in refused(tmp_path / "absent")
    assert "absent.rego" in refused(tmp_path / "absent.rego")
    assert "no .rego files" in refused(tmp_path)
    (tmp_path / "policy_test.rego").write_text(ECHO)
    assert "no .rego files" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a bundle", b"\x1f\x8b\x08\x00"])
def test_damaged_bundle(tmp_path, content):
    """A bundle that is none is named."""
    path = tmp_path / "bundle.tar.gz"
    path.write_bytes(content)
    assert str(path) in refused(path)


def test_policy_that_is_no_text(tmp_path):
    """A module that is no text is named."""
    path = tmp_path / "policy.rego"
    path.write_bytes(b"package envoy.authz\n# \xff\n")
    assert "policy.rego" in refused(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.json", "{"),
        ("data.json", "[]"),
        ("data.yaml", "a: [1"),
        ("data.json", '{"a": 1}\xff'),
    ],
)
def test_wrong_data(policy, tmp_path, name, text):
    """Data that cannot be read, or is no object, is named."""
    policy(ECHO)
    policy(text, name)
    assert name in refused(tmp_path)


def test_data_given_twice(policy, tmp_path):
    """Two files that give the same value are no policy: nobody could say which counts."""
    policy(ECHO)
    policy('{"a": {"b": 1}}', "data.json")
    policy('{"b": 2}', "a/data.json")
    assert "twice" in refused(tmp_path)


def test_directory_and_bundle_decide_alike(policy, tmp_path):
    """A directory and a bundle of the same files are the same policy, with its data by path."""
    text = HEAD + "allow := data.people[input.name].role\n"
    policy(text, "policies/policy.rego")
    policy('{"alice": {"role": "nurse"}}', "policies/people/data.json")
    policy("bob:\n  role: doctor\n", "policies/more/people/ignored.yaml")
    policy("package envoy.authz\nallow := 1 if {", "policies/policy_test.rego")
    bundle = tmp_path / "bundle.tar.gz"
    with tarfile.open(bundle, "w:gz") as tar:
        tar.add(tmp_path / "policies", arcname="/")
    revisions = []
    for path in (tmp_path / "policies", bundle):
        assert decide(path, {"name": "alice"}, {"name": "bob"}) == ["nurse", UNDEFINED]
        revisions.append(revision_of(path))
    assert revisions[0] == revisions[1]


def test_functions_that_are_there(policy, tmp_path):
    """Functions of the policy's own, of its other modules, and names in text and comments stand."""
    policy("package lib\nimport rego.v1\ndouble(x) := x * 2\ndefault half(_) := 0\n", "lib.rego")
    policy(
        HEAD
        + 'import data.lib\nimport data.lib.double as twice\n# nothing(x)\ns := "nothing(x)"\n'
        + 't := `nothing("x)`\nown(x) := y if { not(x == 7); y := twice(x) }\n'
        + "allow := [own(input.x), data.lib.double(1), count(s), lib.half(1)]\n"
    )
    assert decide(tmp_path, {"x": 3}) == [[6, 2, 10, 0]]


def test_conflict(policy):
    """Rules that give two answers give none."""
    text = HEAD + "allow := true if input.a\nallow := false if input.b\n"
    both, one = decide(policy(text), {"a": True, "b": True}, {"a": True})
    assert isinstance(both, PolicyError)
    assert one is True


def test_errors_tell_no_input(policy):
    """What a policy fails on may be a patient's: the error does not repeat it."""
    text = HEAD + "allow := object.get(input.x, input.y, to_number(input.z))\n"
    [error] = decide(
        policy(text), {"x": "secret-value", "y": ["secret-value"], "z": "secret-value"}
    )
    assert error is UNDEFINED or "secret-value" not in str(error)


def test_reload(policy):
    """A changed policy comes into force; one that does not load leaves the last good one, and its
    revision."""
    later = [
        HEAD + "allow := 2 # changed\n",
        HEAD + "allow := := 3\n",
        "",
        HEAD + "elsewhere := 4\n",
        HEAD + "allow := 55\n",
    ]
    path = policy(HEAD + "allow := 1\n")

    async def run():
        engine = EmbeddedEngine(path, "envoy/authz/allow")
        await engine.start()
        seen = [engine.decide([{}], time.monotonic() + 60)]
        for text in later:
            path.write_text(text)
            with contextlib.suppress(UsageError):
                await engine.look()
            seen.append(engine.decide([{}], time.monotonic() + 60))
            assert seen[-1].revision == hashlib.sha256(engine.archive).hexdigest()
        await engine.close()
        return seen

    seen = asyncio.run(run())
    assert [decided.outcomes for decided in seen] == [[1], [2], [2], [2], [2], [55]]
    revisions = [decided.revision for decided in seen]
    assert revisions[1] == revisions[2] == revisions[3] == revisions[4]
    assert len(set(revisions)) == 3


def test_a_refusal_lasts(policy):
    """A policy that does not load is told as long as it is so, and no longer."""
    path = policy(HEAD + "allow := 1\n")

    async def run():
        engine = EmbeddedEngine(path, "envoy/authz/allow")
        await engine.start()
        path.write_text(HEAD + "allow := := 2\n")
        for _ in range(2):
            with pytest.raises(UsageError, match=r"line 3"):
                await engine.look()
        path.write_text(HEAD + "allow := 1\n")
        await engine.look()
        await engine.look()
        await engine.close()

    asyncio.run(run())


def test_file_gone_for_a_while(policy):
    """A policy whose file goes away stays in force, and is read again when it is back."""
    path = policy(HEAD + "allow := 1\n")

    async def run():
        engine = EmbeddedEngine(path, "envoy/authz/allow")
        await engine.start()
        path.unlink()
        with pytest.raises(UsageError, match="No such file"):
            await engine.look()
        assert _decided(engine, {}) == 1
        path.write_text(HEAD + "allow := 2\n")
        await engine.look()
        assert _decided(engine, {}) == 2
        await engine.close()

    asyncio.run(run())


def test_slow_policy(policy):
    """What is not decided in time is no decision, for who asked and for who waits behind; what was
    decided before it stands."""
    slow = (
        "count([1 | some i in numbers.range(1, 400); some j in numbers.range(1, 400); i * j == 7])"
    )
    path = policy(HEAD + f"allow := 1 if input.quick\nallow := {slow} if not input.quick\n")

    async def run():
        engine = EmbeddedEngine(path, "envoy/authz/allow")
        await engine.start()
        quick, slow = {"quick": True}, {}
        first = engine.decide([quick, slow, quick], time.monotonic() + 0.05).outcomes
        behind = engine.decide([quick], time.monotonic() + 0.01).outcomes
        await engine.close()
        return first, behind

    first, behind = asyncio.run(run())
    assert first[0] == 1
    assert [type(outcome) for outcome in (*first[1:], *behind)] == [UnavailableError] * 3


@pytest.mark.parametrize("told", ATTEMPTS)
@pytest.mark.parametrize(
    "expression",
    [
        "input.told",
        'trim(input.told, "#")',
        "trim_space(input.told)",
        "lower(input.told)",
        'replace(input.told, "#", "")',
        'concat("", [input.told, ""])',
        "base64.decode(input.encoded)",
        "base64url.decode(input.encoded)",
        'sprintf("%s", [input.told])',
        'sprintf("%v", [input.told])',
        "substring(input.told, 0, -1)",
        'split(input.told, "#")[0]',
        "json.unmarshal(input.json)",
        "json.marshal(input.told)",
        "urlquery.decode(input.told)",
        "format_int(count(input.told), 10)",
    ],
)  # fmt: skip
def test_injection(engines, told, expression):
    """Whatever text a caller gives, by whatever builtin it passes into the decision, the decision
    has the policy's own form: this denial with that text, or none."""
    rule = '{"allowed": false, "dynamic_metadata": {"told": TOLD}, "headers": {"x-told": TOLD}}'
    _, run = engines(HEAD + f"allow := {rule.replace('TOLD', expression)}\n")
    encoded = base64.b64encode(told.encode()).decode()
    document = {"told": told, "encoded": encoded, "json": json.dumps(told)}
    decision = run(document)
    if decision is UNDEFINED or isinstance(decision, PolicyError):
        return
    text = decision["headers"]["x-told"]
    assert isinstance(text, str)
    assert decision == {
        "allowed": False, "dynamic_metadata": {"told": text}, "headers": {"x-told": text},
    }  # fmt: skip
    if expression == "input.told":
        assert text == told


def test_injection_into_a_comparison(engines):
    """Text that a caller gives is compared as it is, and not as what it would be unescaped."""
    text = HEAD + 'allow if input.told == "a\\"b\\\\c\\n"\n'
    _, run = engines(text)
    assert run({"told": 'a"b\\c\n'}) is True
    for told in ('a\\"b\\\\c\\n', 'a"b\\\\c\n', "a\\u0022b\\c\n"):
        assert run({"told": told}) is UNDEFINED


def test_injection_by_a_key(engines):
    """So for names of headers and the like."""
    _, run = engines(HEAD + 'allow := {"allowed": false, "dynamic_metadata": input.headers}\n')
    for told in ATTEMPTS:
        decision = run({"headers": {told: "x"}})
        if not isinstance(decision, PolicyError):
            assert decision == {"allowed": False, "dynamic_metadata": {told: "x"}}


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Engines by their policy, started once; each answers documents."""
    loop = asyncio.new_event_loop()
    started = {}

    def get(text):
        if text not in started:
            path = tmp_path_factory.mktemp("policy") / "policy.rego"
            path.write_text(text)
            engine = EmbeddedEngine(path, "envoy/authz/allow")
            loop.run_until_complete(engine.start())
            started[text] = path, engine
        path, engine = started[text]
        return path, lambda document: _decided(engine, document)

    yield get
    for _, engine in started.values():
        loop.run_until_complete(engine.close())
        engine._thread.shutdown()
    loop.close()


TEXT = st.text(st.characters(codec="utf-8")) | st.sampled_from(ATTEMPTS)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@UNHURRIED
@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_echo(engines, document):
    """What a policy gives back is what it was given, to the last character, or the decision is an
    error; never anything else."""
    _, run = engines(ECHO)
    decision = run(document)
    if not isinstance(decision, PolicyError):
        assert same(decision, document)


def same(one, other):
    """Equal, and of one type; numbers to the precision the engine prints."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool) or isinstance(one, str) or one is None:
        return type(one) is type(other) and one == other
    return isinstance(other, int | float) and math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)
