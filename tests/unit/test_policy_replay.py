"""Replay: sealed inputs on another policy, and exactly those who gain or lose access are named."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import schema
from deciding import POLICY, decide_with_opa, input_document
from test_demo_policy import decided

from authz.record import canonical
from authz.record.resource import Resources
from authz.record.sealing import SealingKey, load_sealing_key, seal
from authz.store.client import connect
from authz.store.rows import insert

pytestmark = pytest.mark.opa

TOTAL = 1000
NOW_US = time.time_ns() // 1000


class Log:
    """Decisions in a ClickHouse, and their inputs sealed beside them."""

    def __init__(self, database, directory):
        self.store = database
        self.key_file = directory / "sealing.key"
        self.key = load_sealing_key(self.key_file)
        self.documents = {}
        self._client = connect(database)
        schema.make(self._client, database)

    def add(self, documents, decisions, *, bodies=True, key=None, **more):
        """Record what was decided on each document; more values go into each record."""
        rows, sealed = [], []
        for document, decision in zip(documents, decisions, strict=True):
            decision_id = str(uuid.uuid4())
            index = len(self.documents)
            self.documents[decision_id] = document
            http = document["attributes"]["request"]["http"]
            resource = Resources().read(http["method"], http["path"])
            audit = decision.get("audit", {})
            rows.append(
                {
                    "kind": "decision", "origin": "t/1", "index": index, "sealed_at": NOW_US,
                    "decision_id": decision_id, "allowed": decision["allowed"],
                    "reason_code": "allowed" if decision["allowed"] else "denied",
                    "reason": audit.get("reason", ""), "subject": audit.get("subject", ""),
                    "roles": audit.get("roles", []), "method": http["method"],
                    "path": resource.path, "resource_type": resource.type, **more,
                }
            )  # fmt: skip
            ciphertext = seal(key or self.key, document, decision_id, bodies=bodies)
            sealed.append((decision_id, NOW_US, self.key.id, ciphertext))
        insert(self._client, [canonical(row) for row in rows])
        self.put(sealed)

    def put(self, rows):
        columns = "decision_id, sealed_at, key_id, ciphertext"
        self._client.execute(f"INSERT INTO sealed_originals ({columns}) VALUES", rows)

    def close(self):
        self._client.disconnect()

    def replay(self, opa, policy, *options):
        """The command's exit code and what it prints."""
        environment = {**os.environ, "COLUMNS": "300"}
        environment["PATH"] = f"{Path(opa).parent}{os.pathsep}{environment['PATH']}"
        line = ["policy", "replay", "--store", self.store, "--key", self.key_file]
        line += ["--policy", policy, "--since", "1h", *options]
        done = subprocess.run(
            [sys.executable, "-m", "authz", *map(str, line)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    def replay_json(self, opa, policy, *options):
        code, text = self.replay(opa, policy, "--json", *options)
        return code, json.loads(text)


@pytest.fixture
def log(database, tmp_path):
    with contextlib.closing(Log(database, tmp_path)) as found:
        yield found


@pytest.fixture(scope="module")
def documents():
    """A thousand requests of the demo's people, each with a token and a time of its own."""
    found = []
    for number, request in enumerate(decided(TOTAL)[:TOTAL]):
        document = input_document(request)
        http = document["attributes"]["request"]["http"]
        http["headers"]["authorization"] = f"Bearer eyJhbGciOiJub25lIn0.{number}.x"
        http["id"] = str(number)
        found.append(document)
    assert len(found) == TOTAL
    return found


@pytest.fixture(scope="module")
def decisions(opa, documents):
    """What the sample policy says of them, by another way to ask OPA."""
    return decide_with_opa(opa, POLICY, documents)


@pytest.fixture
def changed(tmp_path):
    """A copy of the sample policy, to change."""
    return Path(shutil.copytree(POLICY, tmp_path / "changed"))


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


def again(opa, policy, documents):
    """What `opa eval` says of the same requests, sent again, on another policy."""
    query = "[d | some i; doc := input.documents[i]; d := data.envoy.authz.allow with input as doc]"
    command = [opa, "eval", "--data", str(policy), "--stdin-input", query]
    told = subprocess.run(
        command, input=json.dumps({"documents": documents}), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return json.loads(told.stdout)["result"][0]["expressions"][0]["value"]


def test_unchanged_is_the_same(log, opa, documents, decisions):
    """A thousand decisions replayed on the policy that made them are a thousand the same."""
    log.add(documents, decisions)
    code, told = log.replay_json(opa, POLICY)
    assert (code, told["same"], told["changes"]) == (0, TOTAL, [])
    assert (told["gains"], told["loses"], told["not_replayable"]) == (0, 0, {})
    assert told["same_for_another_reason"] == 0


def test_one_flipped_rule_names_exactly_those(log, opa, documents, decisions, changed):
    """One rule flipped: the decisions named are those whose request, sent again, changes."""
    log.add(documents, decisions)
    edit(changed / "care_team.rego", "subject in team(patient)", "not subject in team(patient)")
    after = again(opa, changed, documents)
    wanted = {
        decision_id: "gains" if new["allowed"] else "loses"
        for decision_id, old, new in zip(log.documents, decisions, after, strict=True)
        if old["allowed"] != new["allowed"]
    }
    assert {"gains", "loses"} == set(wanted.values())
    code, told = log.replay_json(opa, changed)
    assert code == 1
    assert {each["decision_id"]: each["change"] for each in told["changes"]} == wanted
    assert told["same"] == TOTAL - len(wanted)
    assert sum(group["count"] for group in told["groups"]) == len(wanted)


def test_what_a_reviewer_sees(log, opa, documents, decisions, changed):
    """The table groups by person, roles, method, kind and path, with both reasons, and no patient
    is in it in clear, not even if the policy's reason names one."""
    log.add(documents, decisions)
    edit(changed / "decision.rego", '"not on the care team"',
         'sprintf("not on the team of %v", [patients])')  # fmt: skip
    edit(changed / "care_team.rego", 'reaches("any_patient") if resource_id != ""', "")
    code, text = log.replay(opa, changed)
    assert code == 1
    assert "Who gains or loses access" in text
    assert re.search(r"loses.*b\.dogwood.*billing.*GET Claim.*/fhir/Claim/\{id\}", text)
    assert "the same" in text
    told = json.dumps(log.replay_json(opa, changed)[1])
    for document in documents:
        for patient in re.findall(r"p-\d{4}", json.dumps(document)):
            assert patient not in text
            assert patient not in told


@pytest.mark.thorough
def test_not_replayable_is_counted(log, opa, documents, decisions, tmp_path):
    """What cannot be judged is told apart, with the reason, and the exit code says so."""
    log.add(documents[:20], decisions[:20])
    log.add(documents[20:30], decisions[20:30], reason_code="deadline")
    log.add(documents[30:40], decisions[30:40], key=SealingKey.of(b"x" * 32))
    log.put([(str(uuid.uuid4()), NOW_US, log.key.id, b"x")])
    code, told = log.replay_json(opa, POLICY)
    assert code == 3
    assert told["same"] == 20
    reasons = told["not_replayable"]
    assert reasons["not decided by the policy (deadline)"] == 10
    assert reasons[f"sealed with another key ({SealingKey.of(b'x' * 32).id})"] == 10
    assert reasons["its decision is not in the log"] == 1
    token = tmp_path / "token.rego"
    token.write_text(
        "package envoy.authz\n\nallow if {\n\t"
        'token := split(input.attributes.request.http.headers.authorization, " ")[1]\n\t'
        "io.jwt.decode(token)[1].sub\n}\n"
    )
    code, told = log.replay_json(opa, token)
    assert code == 3
    assert told["not_replayable"]["needs credentials in headers (not sealed)"] == 20


def test_a_policy_that_reads_bodies(log, opa, documents, decisions):
    """Without bodies sealed, requests that had one are not replayable, and no others."""
    log.add(documents, decisions, bodies=False)
    bodies = sum("body" in each["attributes"]["request"]["http"] for each in documents)
    assert bodies
    code, told = log.replay_json(opa, POLICY)
    assert code == 3
    assert told["not_replayable"] == {"needs the body (not sealed)": bodies}
    assert told["same"] == TOTAL - bodies


@pytest.mark.thorough
def test_what_ends_it(log, opa, documents, decisions, tmp_path):
    """No key, no such decision, a policy that does not compile, nothing sealed: the exit code and
    one line say which."""
    log.add(documents[:3], decisions[:3])
    code, text = log.replay(opa, POLICY, "--since", "30s", "--until", "2001-01-01")
    assert (code, "nothing was sealed" in text) == (3, True)
    code, text = log.replay(opa, POLICY, "--decision", "envoy/authz/other")
    assert (code, "--decision envoy/authz/other" in text) == (2, True)
    code, text = log.replay(opa, POLICY, "--since", "yesterday")
    assert (code, "--since yesterday" in text) == (2, True)
    wrong = tmp_path / "wrong.rego"
    wrong.write_text("package envoy.authz\n\nallow if y\n")
    code, text = log.replay(opa, wrong)
    assert (code, "wrong.rego:3" in text) == (2, True)
    log.key_file.unlink()
    code, text = log.replay(opa, POLICY)
    assert (code, "no sealing key" in text) == (3, True)


def test_a_policy_that_asks_others_is_not_run(log, opa, documents, decisions, tmp_path):
    """A review sends nothing about patients to anybody."""
    log.add(documents[:3], decisions[:3])
    asks = tmp_path / "asks.rego"
    asks.write_text(
        "package envoy.authz\n\nallow if http.send("
        '{"method": "GET", "url": "http://127.0.0.1:1/"}).status_code == 200\n'
    )
    code, told = log.replay_json(opa, asks)
    assert (code, told["not_replayable"]) == (3, {"the policy calls http.send": 3})


def test_on_a_server(log, opa, documents, decisions):
    """With the address of an OPA server the policy there is asked, and nothing is loaded there."""
    from authz.policy.opa_process import running
    from authz.policy.source import load

    log.add(documents[:100], decisions[:100])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(opa).parent), prepend=os.pathsep)
        with running(load(POLICY)) as url:
            code, told = log.replay_json(opa, url)
    assert (code, told["same"]) == (0, 100)
