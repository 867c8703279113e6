"""What the Check server seals is what a replay finds: who gains and who loses by a changed policy,
before it is rolled out."""

import asyncio
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from live import Caller, Tuned, settle
from pages import FUNCTION, block
from programs import AUTHZ, CHECKOUT, run, world

from authz.demo.people import plan
from authz.demo.stack import running
from authz.store.client import connect

pytestmark = pytest.mark.opa
REQUESTS = 1000


def rows(client, query, values=None):
    return client.execute(query, values or {})


@pytest.fixture(scope="module")
def lived(opa, tmp_path_factory):
    """A stack that has decided `REQUESTS` requests of the demo, with their inputs sealed."""
    directory = tmp_path_factory.mktemp("replay")
    settings = {"AUTHZ_PRIVACY__SEAL_INPUTS": "true"}
    policy = directory / "policy"
    shutil.copytree(CHECKOUT / "deploy" / "opa", policy)
    stack = Tuned(directory / "data", policy=policy, ext_authz=settings, timeout_ms=2000)
    with running(stack, lambda _: None):
        requests = [one for one in plan(REQUESTS) if one.expect != "rejected"]
        answers = asyncio.run(send(stack, requests))
        asyncio.run(settle(stack))
        yield stack, answers


async def send(stack, requests):
    """The answers, in the order of the requests."""
    todo = iter(enumerate(requests))
    answers = {}
    async with Caller(stack) as caller:

        async def work():
            for number, request in todo:
                answers[number] = await caller.send(request)

        await asyncio.gather(*(work() for _ in range(8)))
    return [answers[number] for number in range(len(requests))]


def replay(stack, policy: Path):
    """By the page's command, where the key and the policy are."""
    command = block("docs/policies.md", "authz policy replay").strip()
    with world() as where, tempfile.TemporaryDirectory() as place:
        (Path(place) / "sealing.key").symlink_to(stack.data_dir / "ext-authz" / "sealing.key")
        (Path(place) / "policy").symlink_to(policy)
        where.environment["STORE"] = stack.store
        done = run(["sh", "-eu", "-c", f"{FUNCTION}{command} --json"], where, 120, cwd=place)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def unchanged(lived):
    """On the policy that decided, all are the same."""
    stack, answers = lived
    code, found = replay(stack, stack.policy)
    assert (code, found["gains"], found["loses"]) == (0, 0, 0), found
    assert found["same"] >= len(answers) == REQUESTS


@pytest.mark.thorough
def test_one_flipped_rule(lived, tmp_path):
    """On a policy with one rule flipped, exactly those are named whose requests, sent again, are
    answered otherwise."""
    unchanged(lived)
    stack, answers = lived
    changed = tmp_path / "changed"
    shutil.copytree(stack.policy, changed)
    data = json.loads((changed / "data.json").read_text())
    del data["roles"]["nurse"]
    (changed / "data.json").write_text(json.dumps(data))
    code, found = replay(stack, changed)
    assert code == 1, found
    named = {change["decision_id"] for change in found["changes"]}
    with connect(stack.store) as client:
        query = "SELECT trace_id FROM decisions WHERE decision_id IN %(ids)s"
        traces = {trace for (trace,) in rows(client, query, {"ids": sorted(named)})}
    shutil.copytree(changed, stack.policy, dirs_exist_ok=True)
    wait_for_policy(stack)
    again = asyncio.run(send(stack, [answer.request for answer in answers]))
    expected = {
        before.trace
        for before, after in zip(answers, again, strict=True)
        if before.status != after.status
    }
    assert expected
    assert traces == expected


def wait_for_policy(stack):
    """Until the changed policy is on record as loaded."""
    for _ in range(100):
        asyncio.run(settle(stack))
        with connect(stack.store) as client:
            query = "SELECT count() FROM notices WHERE event = 'policy_loaded'"
            if rows(client, query)[0][0] >= 2:
                return
    raise AssertionError("the changed policy did not come into force")


@pytest.mark.thorough
def test_the_rego_behind_a_record(lived):
    """The text of the policy behind any decision is printed by its revision."""
    stack, _ = lived
    with connect(stack.store) as client:
        [(revision,)] = rows(
            client, "SELECT policy_revision FROM decisions ORDER BY origin, index LIMIT 1"
        )
    with world() as where:
        shown = run([*AUTHZ, "policy", "show", revision, "--store", stack.store], where)
    assert shown.returncode == 0, shown.stderr
    assert (CHECKOUT / "deploy" / "opa" / "purpose.rego").read_text().strip() in shown.stdout
