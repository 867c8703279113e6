"""What a policy is said to read: nothing that can change its decision is left out.

The cache and the replay rest on `Reads.may_read`. A policy is made of every route to the input
that Rego has, loaded into a real OPA, and asked about an input and about the same input with one
place changed: if the answer differs, `may_read` must have said so.
"""

import contextlib
import copy
import http.client
import json
import os
import random
import re
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from authz.policy.builtins import IMPURE, PURE, TIMED
from authz.policy.opa_process import running
from authz.policy.rego_ast import reads, rule_reads, union
from authz.policy.source import Policy

pytestmark = pytest.mark.opa

INPUT = {
    "a": {"b": {"c": 1, "d": "b"}, "k": "b", "t": True},
    "k": "a",
    "l": [{"b": 1}, "c", "k"],
    "s": "x",
    "n": {"b": {"c": 1, "d": "b"}, "k": "b", "t": True},  # as a: two rules may agree
}
DATA = {"base": {"a": {"b": {"c": 7}}, "k": "k"}, "names": ["a", "k", "zz"]}
NAMES = ("a", "b", "c", "d", "k", "l", "n", "s", "t")
PLACES = (
    (), ("a",), ("a",), ("a", "b"), ("a", "b"), ("a", "b", "c"), ("a", "k"), ("k",), ("l",), ("n",),
    ("n", "b"), ("n", "b", "c"), ("s",), ("a", "t"), ("c",), ("a", "b", "new"), ("new",),
)  # fmt: skip

# Rules of a package `r` that the statements may use. Each reaches the input in a way of its own.
RULES = {
    "place": "place := input.a",
    "got": 'got := object.get(input, "a", {})',
    "deeper": 'deeper := object.get(place, "b", {})',
    "chain": "chain := place.b",
    "guarded": 'guarded := input.a if input.s == "x"',
    "fallback": "default fallback := {}\n\nfallback := input.a",
    "twice": "twice := input.a\n\ntwice := input.n",
    "other": "other := input.a if input.t else := input.n",
    "bag": "bag contains input.k\n\nbag contains x if some x in input.l",
    "table": "table[input.k] := input.a\n\ntable.fixed := input.s",
    "nested": 'nested.one[input.k].two := input.a.b if input.s == "x"',
    "call": "call(x) := x.b\n\ndefault call(_) := false",
    "deep": 'deep(x, y) := object.get(x, y, "none")',
    "choose": 'choose(x) := x if x == "a" else := input.k',
    "match": 'match({"b": x}) := x',
    "leak": "leak(_, _, _) := input.s",
    "free": "free(x) if x.b.c == 1",
    "local": "local := x if {\n\ty := input.a\n\tx := y.b\n}",
    "unused": "unused if x := input.a.b.c",
    "constant": 'constant := {"b": {"c": 1}}',
    "whole": "whole := input",
    "everything": "everything := {x | walk(input, [_, x])}",
    "inner": "inner := {x | x := object.get(place, input.k, 1)}",
    "matched": 'matched := x if input.n = {"b": x}',
    "argued": "argued := call(input.n)",
}  # fmt: skip

# Values; {v} is an earlier value, {p} a place in the input, {n} a name, {q} another name. The first
# read a part that can be told, the others more.
NARROW = (
    "input{p}", "input{p}", "input{p}", "a{p}", 'object.get(input{p}, "{n}", {v})',
    'object.get(input, ["{n}", "{q}"], "none")', 'object.get({v}, "{n}", input{p})',
    'object.get({v}, ["{n}", "{q}"], "none")', 'object.get({v}, "{n}", "none")', "{v}.{n}",
    '{v}["{n}"]', "{v}.{n}", "{{x | some x in input{p}}}", '$"<{{input{p}}}>"', '$"{{{v}}}"',
    "r.call(input{p})", "r.call({v})", "r.place", "r.place.b", "r.got.b", "r.got.b", "r.deeper.c",
    "r.chain.c", "r.chain.c", "r.guarded.b.c", "r.guarded.k", "r.fallback.b", "r.fallback.k",
    "r.twice.b", "r.other.b", "r.bag", "r.table.fixed", "r.table.a.b", "r.nested.one", "r.local.c",
    "r.unused", "r.constant.b", "r.matched", "r.argued", "data.u.place{p}", "data.u.back.c",
    "data.u.back.d", 'object.get(r.place, "{n}", 0)', 'object.get(r.got, "{n}", {{}})',
    'object.get(r.fallback, "b", {{}})', "data.base.a.b", "[{v}, input{p}]",
    '{{"x": input{p}, "y": {v}}}', "count(input{p})", "[x | x := {v}; x == {v}]",
)  # fmt: skip
WIDE = (
    "input[{v}]", "input.a[{v}]", "input[input.k]", "input.a[input.a.k]", "{v}[{v}]", "{v}[_]",
    "object.get(input{p}, {v}, 0)", "object.get(input, {v}, 1)", "{v}[input.k]", "r[{v}]",
    'json.filter(input, ["{n}/{q}"])', 'json.remove(input{p}, ["{n}"])', "r[input.s].b",
    'object.subset(input{p}, {{"{n}": 1}})', 'object.remove(input{p}, ["{n}"])', "data[input.s]",
    "object.union(input.n, input{p})", "object.keys(input{p})", "[x | x := input{p}[_]]",
    "{{x: y | some x, y in input{p}}}", 'sprintf("%v", [input{p}])', "json.marshal(input{p})",
    "{{input{p}}}", 'r.deep(input{p}, "{n}")', "r.deep({v}, {v})", "r.choose({v})", "r.place[{v}]",
    "r.match(input{p})", "data[{v}]", "data.base[input.k]", "input.l[data.base.n]", "r.everything",
    "r.whole{p}", "r.table[input.k]", "r.nested.one[input.k]", "r.inner", "{v} == input{p}",
    "[input, 1][0]{p}", "object.get(r.fallback, {v}, {{}})", "data.base[_]", "data.u[input.k]",
    "r[_].b",
)  # fmt: skip

# Ends of a statement that change what it sees.
WITH = (
    " with input as {{}}", " with input as input{p}", " with input as {v}", " with input as a",
    " with input.a as {v}", ' with input.a as {{"b": input.k}}', " with data.base as input.n",
    " with data.base.a as input{p}", " with data.r.place as input{p}", " with data.r.got as {v}",
    " with data.r.constant as input{p}", " with object.get as data.r.leak",
    " with count as data.r.call", " with data.r.call as json.marshal",
    " with data.r.choose as data.r.call", " with input as r.place", " with input.a.b as input.n.b",
)  # fmt: skip

TESTS = (
    "{v}", "not {v}", '{v} == "a"', "{v} != input{p}", "count({v}) > 0", "is_object({v})",
    "not {v}.{n}", "{v}.{n} == 1", "some {v}_x in {v}", 'some {v}_k, _ in {v}; {v}_k == "b"',
    "every {v}_x in {v} {{ {v}_x != 1 }}", "every {v}_x in input.l {{ {v}_x != {v} }}",
    "r.free({v})", "{v} in input.l", "input{p} = {v}", 'object.get(input{p}, "{n}", 0, {v})',
    "[{v}, _] = [input{p}, 1]", '{{"b": {v}_b}} = input{p}', "not r.free(input{p})",
    "{v}_y := {v}; not {v}_y.b", "input[{v}_i] == {v}", "{v} = r.place", "{v}_z = {v}.b; {v}_z",
    "{v}_o := input{p}", "{v}_o := input{p}; {v}_o = {v}", "not r.place.{n}", "r.unused",
)  # fmt: skip


def statements(chance):
    """A rule's body, and a value that it ends with."""

    def fill(form):
        return form.format(
            v=chance.choice(known),
            p="".join(f".{name}" for name in chance.choice(PLACES)),
            n=chance.choice(NAMES),
            q=chance.choice(NAMES),
        )

    known, lines = ["v"], [f'v := "{chance.choice(NAMES)}"']
    for number in range(chance.choice((1, 1, 2, 2, 3))):
        sign = ":=" if chance.random() < 0.8 else "="
        form = chance.choice(NARROW if chance.random() < 0.85 else WIDE)
        end = fill(chance.choice(WITH)) if chance.random() < 0.15 else ""
        lines.append(f"v{number} {sign} {fill(form)}{end}")
        known.append(f"v{number}")
    for name in known[1:]:
        if chance.random() < 0.3:
            test = fill(chance.choice(TESTS).replace("{v}", name))
            end = fill(chance.choice(WITH)) if chance.random() < 0.2 and ";" not in test else ""
            lines += [*(test + end).split("; ")]
    shown = [name for name in known[1:] if chance.random() < 0.5]
    return "\n\t".join(lines), "[" + ", ".join(shown) + "]"


@st.composite
def policies(draw):
    """Two modules: one decides in statements drawn from all of the above, the other, `r`, has the
    rules these use and no more."""
    chance = random.Random(draw(st.integers(0, 2**48)))
    rules = []
    for _ in range(chance.choice((1, 1, 2))):
        body, shown = statements(chance)
        head = chance.choice(("allow", f"out contains {shown}", f"out contains {shown}", "bit"))
        rules.append(f"{head} if {{\n\t{body}\n}}")
    head = "package t\n\nimport data.r\nimport input.a as a\n\ndefault allow := false\n"
    last = "out contains 0\n\nbit if false"
    text = "\n\n".join([head, *rules, last])
    return text, "package r\n\n" + "\n\n".join(_used(text + BESIDE))


def _used(text):
    """The rules of `RULES` that a text uses, or that these use."""
    used = {}
    while True:
        every = text + "".join(used.values())
        more = {
            name: rule
            for name, rule in RULES.items()
            if name not in used and re.search(rf"\b{name}\b", every)
        }
        if not more:
            return used.values() if used else ["nothing := 1"]
        used |= more


BESIDE = """package u

place := data.r.place

back := data.r.deeper if place.k
"""


NO_RULES = "package r\n\nplace := input.a\n\ndeeper := place.b"


class Asked:
    """A real OPA, spoken to on one connection."""

    def __init__(self, url):
        self._connection = http.client.HTTPConnection("opa")
        self._connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.sock.connect(url.removeprefix("unix://"))

    def ask(self, method, path, body=None):
        self._connection.request(method, path, body)
        response = self._connection.getresponse()
        return response.status, json.loads(response.read())

    def load(self, text, rules=NO_RULES):
        """The trees of the modules, or None for a policy that is none."""
        for name in ("t", "r", "u"):
            self.ask("DELETE", f"/v1/policies/{name}.rego")
        for name, module in (("r", rules), ("u", BESIDE), ("t", text)):
            status, _ = self.ask("PUT", f"/v1/policies/{name}.rego", module.encode())
            if status != 200:
                assert name == "t", (name, module)
                return None
        _, answer = self.ask("GET", "/v1/policies")
        return [policy["ast"] for policy in answer["result"]]

    def decide(self, query, document):
        status, answer = self.ask(
            "POST", f"/v1/data/{query}".rstrip("/"), json.dumps({"input": document})
        )
        assert status in (200, 500), answer
        return json.dumps(answer.get("result", status), sort_keys=True)

    def close(self):
        self._connection.close()


@pytest.fixture(scope="module")
def server(opa):
    """An OPA with a module beside the one under test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(opa).parent), prepend=os.pathsep)
        policy = Policy({"t.rego": "package t"}, DATA)
        with running(policy) as url, contextlib.closing(Asked(url)) as asked:
            yield asked


def changes():
    """Each place in the input, with the input changed there: another value, another type, gone."""

    def places(value, path=()):
        if isinstance(value, dict):
            for name in value:
                yield (*path, name)
                yield from places(value[name], (*path, name))

    for path in [*places(INPUT), ("new",), ("a", "new"), ("a", "b", "new"), ("n", "b", "new")]:
        for value in ("a", "other", 1, {"b": 1}, {}, [], None, False, KeyError):
            changed = copy.deepcopy(INPUT)
            place = changed
            for name in path[:-1]:
                place = place[name]
            if value is KeyError:
                place.pop(path[-1], None)
            else:
                place[path[-1]] = value
            yield path, changed


CHANGES = list(changes())


def counterexamples(server, query, known):
    """The places that `known` says are not read and that change the answer to `query`."""
    unread = [(path, changed) for path, changed in CHANGES if not known.may_read(path)]
    if not unread:
        return []
    before = server.decide(query, INPUT)
    return [path for path, changed in unread if server.decide(query, changed) != before]


@pytest.mark.thorough
@settings(
    max_examples=int(os.environ.get("AUTHZ_TEST_POLICIES", "100")),
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)  # fmt: skip
@given(policy=policies())
def test_nothing_that_matters_is_left_out(server, policy):
    """Whatever changes a decision is among what the policy is said to read: for the decision
    itself, for any rule that is asked for, and for the sum of what its rules read."""
    trees = server.load(*policy)
    assume(trees is not None)
    for query in ("t/allow", "t/out", "t/bit", "t", "u/back", "r/place"):
        known = reads(trees, query)
        assert counterexamples(server, query, known) == [], (query, *policy)
        of_rules = union([rule for module in rule_reads(trees, query) for rule in module])
        assert known.paths == of_rules.paths
    assert counterexamples(server, "", reads(trees)) == [], policy


KNOWN_TRAPS = {
    "a local that nothing uses asks whether the place is there": (
        "allow if x := input.a.b.c",
        ("a", "b", "c"),
    ),
    "object.get replaced by a function that looks elsewhere": (
        'leak(o, _, _) := o.t\n\nallow if object.get(input.a, "k", 0) with object.get as leak',
        ("a", "t"),
    ),
    "a rule that names a place, asked for as a value": (
        "place := input.a\n\nallow if count(place) == 3",
        ("a", "b", "c"),
    ),
    "a rule that names a place, reached by a name that is computed": (
        "allow if data.r[input.k].b.c == 1",
        ("a", "b", "c"),
    ),
    "two rules of one name conflict by all of their values": (
        "place := input.a\n\nplace := input.n\n\nallow if place.b.c == 1",
        ("a", "t"),
    ),
    "a default and a place": (
        "default place := {}\n\nplace := input.a\n\nallow if not place.b.c",
        ("a", "b", "c"),
    ),
    "a default that is read": (
        'allow if object.get(input.a, "new", input.s) == "x"',
        ("s",),
    ),
    "a name through names": (
        'top := input.a\n\nnext := object.get(top, "b", {})\n\nallow if x := next.c',
        ("a", "b", "c"),
    ),
}


@pytest.mark.parametrize(("rules", "place"), KNOWN_TRAPS.values(), ids=KNOWN_TRAPS)
def test_known_traps(server, rules, place):
    """Ways to read a place that are easy to miss are not missed."""
    trees = server.load(f"package t\n\n{rules}")
    assert trees is not None
    assert reads(trees, "t/allow").may_read(place)


def test_a_rule_that_names_a_place_is_seen_through(server):
    """Asked for one decision, a policy that names `headers` once reads only what it reads there."""
    rules = (
        'headers := object.get(input.a, "b", {})\n\nallow if {\n\th := headers\n\th.c == 1\n}\n\n'
        'allow if object.get(headers, ["d"], "") == "q"'
    )
    trees = server.load(f"package t\n\n{rules}")
    known = reads(trees, "t/allow")
    assert known.may_read(("a", "b", "c"))
    assert known.may_read(("a", "b", "d"))
    assert known.may_read(("a",))
    assert not known.may_read(("a", "b", "other"))
    assert not known.may_read(("n",))
    assert reads(trees).may_read(("a", "b", "other")), "somebody may ask for data.t.headers"


def test_every_builtin_is_judged(opa):
    """Each builtin of this OPA is on one of the three lists, and those that OPA calls
    nondeterministic are not among the pure."""
    told = subprocess.run([opa, "capabilities", "--current"], capture_output=True, check=True)
    builtins = json.loads(told.stdout)["builtins"]
    assert {each["name"] for each in builtins} <= PURE | IMPURE | TIMED
    assert not PURE & (IMPURE | TIMED)
    assert not PURE & {each["name"] for each in builtins if each.get("nondeterministic")}


@pytest.mark.parametrize("use", ["allow if f(input.a)", "allow if count(input.a) with count as f"])
def test_a_builtin_that_nobody_knows_is_not_trusted(server, use):
    """An OPA built with more builtins than ours gets no cache and no batches for them."""
    trees = server.load(
        "package t\n\n" + use.replace("f(", "is_null(").replace("as f", "as is_null"),
    )
    text = json.dumps(trees)
    assert reads(trees).batchable
    assert '"is_null"' in text
    known = reads(json.loads(text.replace('"is_null"', '"look_up"')))
    assert not known.batchable
    assert not known.function_of_input
