"""A finding changes what the policy answers, on both engines, through a real Envoy."""

import asyncio
import json
import os
import pwd
import shutil
import subprocess
import time
from dataclasses import dataclass

import grpc
import jwt
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from live import Caller, Tuned, account
from programs import AUTHZ, free_port, until

from authz.demo.people import KEY_ID, PEOPLE, Request
from authz.demo.stack import HOST, Part, Stack, deploy_dir, running
from authz.detect.detector import Finding
from authz.detect.record import finding_record
from authz.record import notice
from authz.serve.forward import CHANNEL_OPTIONS
from authz.serve.tell import tell
from authz.store.client import connect

CHECK = "/envoy.service.auth.v3.Authorization/Check"
CHART = Request("alder", "GET", "/fhir/Patient/p-0001")
OTHER = Request("birch", "GET", "/fhir/Patient/p-0041")
BILL = Request("dogwood", "GET", "/fhir/Claim/clm-00001")
ALDER, DOGWOOD = (PEOPLE[name].sub for name in ("alder", "dogwood"))
SOON = {"AUTHZ_RECEIVER__BATCH_SECONDS": "0.1"}  # findings are looked up by what is stored


@dataclass
class Site:
    """A running stack, and a process like `authz watch` that writes to its receiver."""

    stack: Stack
    ports: tuple[int, ...]  # of ext-authz's workers

    def write(self, record):
        """The record's id, once the receiver has it."""
        address = self.stack.parts["receiver"].address

        def channel():
            return grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)

        told = asyncio.run(tell(address, channel, self.stack.data_dir / "watch", [record]))
        query = "SELECT origin, index FROM audit_log WHERE writer = %(w)s AND writer_seq = %(s)s"
        with connect(self.stack.store) as client:
            values = {"w": told.writer, "s": told.seq}
            [(origin, index)] = until(lambda: client.execute(query, values), 60)
        return f"{origin}@{index}"

    def finding(self, subject, lane, rule="bulk_read"):
        finding = Finding(
            time=time.time_ns() // 1000, subject=subject, rule=rule, lane=lane, score=6.25,
            evidence="200 charts in an hour; usual: 12", records=("demo/receiver@1",), cause=rule,
        )  # fmt: skip
        return self.write(finding_record(finding))

    def said(self, event, id_):
        told = notice(event, time.time_ns() // 1000, {"by": "officer"}, records=[id_])
        return self.write(told | {"subject": ALDER, "reason": "looked into"})

    def statuses(self, *requests):
        async def send():
            async with Caller(self.stack) as caller:
                return [(await caller.send(request)).status for request in requests]

        return asyncio.run(send())

    def becomes(self, status, *requests):
        """Wait for it, on every worker."""
        wanted = [status] * len(requests)
        if not until(lambda: self.statuses(*requests) == wanted, 60):
            assert self.statuses(*requests) == wanted, self.logs()
        assert until(lambda: {asked(port) for port in self.ports} == {status}, 60), self.logs()

    def logs(self):
        """The ends of what OPA and ext-authz say."""
        directory = self.stack.data_dir
        logs = [directory.parent / "opa.log", self.stack.parts["ext-authz"].log]
        return "\n".join(log.read_text()[-3000:] for log in logs if log.exists())

    def authz(self, *arguments):
        command = [*AUTHZ, *arguments, "--receiver", self.stack.parts["receiver"].address,
                   "--data-dir", str(self.stack.data_dir / "operator"), "--json"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)


def asked(port):
    """What the ext-authz at `port` says of dr. Alder's look."""
    request = CheckRequest()
    http = request.attributes.request.http
    http.method, http.path, http.host = CHART.method, CHART.path, "fhir.example"
    who = PEOPLE["alder"]
    claims = {"sub": who.sub, "roles": [*who.roles], "tenant": who.tenant, "purpose": who.purpose}
    metadata = request.attributes.metadata_context.filter_metadata
    metadata["envoy.filters.http.jwt_authn"].update({"verified_jwt": claims})
    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        call = channel.unary_unary(CHECK, response_deserializer=CheckResponse.FromString)
        answer = call(request.SerializeToString(), timeout=10, wait_for_ready=True)
    return answer.denied_response.status.code or 200


@pytest.fixture(
    scope="module",
    params=["embedded", pytest.param("opa", marks=[pytest.mark.opa, pytest.mark.thorough])],
)
def site(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "embedded":
        stack = Tuned(directory / "data", timeout_ms=2000, receiver=SOON)
        with running(stack, lambda _: None):
            yield Site(stack, (port_of(stack),))
        return
    policy = directory / "policy"
    shutil.copytree(deploy_dir() / "opa", policy, ignore=shutil.ignore_patterns("*_test.rego"))
    address = f"{HOST}:{free_port()}"
    command = [request.getfixturevalue("opa"), "run", "--server", "--addr", address,
               "--log-level", "error", str(policy)]  # fmt: skip
    opa = Part("opa", command, directory / "opa.log", {}, address)
    stack = Workers(directory / "data", policy=f"http://{address}", timeout_ms=2000, receiver=SOON)
    try:
        opa.start()
        opa.wait_until_up()
        with running(stack, lambda _: None):
            yield Site(stack, (port_of(stack), port_of(stack) + 1))
    finally:
        opa.stop()


def port_of(stack):
    return int(stack.parts["ext-authz"].address.rpartition(":")[2])


class Workers(Tuned):
    """A stack whose ext-authz has two processes; Envoy asks the first."""

    def _add_ext_authz(self):
        super()._add_ext_authz()
        self.parts["ext-authz"].command += ["--workers", "2"]


def test_a_finding_denies_and_an_explanation_ends_that(site):
    """Who acts in a way to act on is denied by the policy, on every worker, and nobody else is;
    explained, it is over; confirmed, it is in force again. The record says why."""
    assert site.statuses(CHART, OTHER, BILL) == [200] * 3
    id_ = site.finding(ALDER, "act")
    site.becomes(403, CHART)
    assert site.statuses(OTHER, BILL) == [200, 200]
    site.said("finding_acknowledged", id_)
    assert site.statuses(CHART) == [403]
    site.said("finding_explained", id_)
    site.becomes(200, CHART)
    site.said("finding_confirmed", id_)
    site.becomes(403, CHART)
    site.said("finding_explained", id_)
    site.becomes(200, CHART)
    found = account(site.stack)
    assert found.report.verified
    with connect(site.stack.store) as client:
        barred = client.execute(
            "SELECT DISTINCT subject, status, reason_code, reason FROM decisions"
            " WHERE startsWith(reason, 'barred')"
        )
        assert (ALDER, 403, "denied", "barred by findings: bulk_read") in barred
        query = "SELECT lane, rule, score_milli, subject FROM findings"
        assert ("act", "bulk_read", 6250, ALDER) in client.execute(query)


def test_step_up(site):
    """Who acts in a way to review is asked to prove anew who they are, as RFC 9470 has it, and goes
    on with a token that does; what is not near patients goes on as it is."""
    id_ = site.finding(ALDER, "review", "off_hours")
    other = site.finding(DOGWOOD, "review", "off_hours")
    site.becomes(401, CHART)
    assert site.statuses(BILL) == [200]

    async def fetch():
        async with Caller(site.stack) as caller:
            answer, (body, headers) = await caller.fetch(CHART)
            caller._tokens["alder"] = token(site.stack, acr="phr", auth_time=int(time.time()))
            return answer.status, body, headers, (await caller.send(CHART)).status

    status, body, headers, afterwards = asyncio.run(fetch())
    assert (status, afterwards) == (401, 200)
    assert json.loads(body) == {"error": "insufficient_user_authentication"}
    challenge = headers["www-authenticate"]
    assert challenge.startswith('Bearer error="insufficient_user_authentication"')
    assert 'acr_values="phrh phr", max_age="0"' in challenge
    for one in (id_, other):
        site.said("finding_explained", one)
    site.becomes(200, CHART)


def token(stack, **more):
    """Dr. Alder's, with further claims."""
    claims = jwt.decode(stack.keys.token(PEOPLE["alder"]), options={"verify_signature": False})
    key = stack.keys._private
    return jwt.encode(claims | more, key, algorithm="ES256", headers={"kid": KEY_ID})


@pytest.mark.thorough
@pytest.mark.parametrize("site", [pytest.param("opa", marks=pytest.mark.opa)], indirect=True)
def test_it_outlives_the_receiver(site):
    """ext-authz that starts while no receiver is there knows what it knew, each of its workers; a
    receiver that was killed tells the same again."""
    id_ = site.finding(ALDER, "act", "stolen_credential")
    site.becomes(403, CHART)
    site.stack.parts["receiver"].kill()
    site.stack.parts["ext-authz"].stop()
    site.stack.restart("ext-authz")
    site.becomes(403, CHART)
    site.stack.restart("receiver")
    site.said("finding_explained", id_)
    site.becomes(200, CHART)


@pytest.mark.parametrize("site", ["embedded"], indirect=True)
def test_block_from_a_finding(site):
    """`authz block --finding` needs no name where the store tells it; the notice names the finding
    and who said so."""
    id_ = site.finding(ALDER, "review")
    said = site.authz(
        "block", "--finding", id_, "--for", "1h", "--reason", "phoned", "--store", site.stack.store
    )
    assert (said["subject"], said["findings"]) == (ALDER, [id_])
    site.becomes(403, CHART)
    account(site.stack)
    with connect(site.stack.store) as client:
        told = client.execute(
            "SELECT subject, records, JSONExtractString(details, 'by') FROM notices"
            " WHERE event = 'block'"
        )
        assert told == [(ALDER, [id_], pwd.getpwuid(os.getuid()).pw_name)]
    site.authz("unblock", ALDER, "--reason", "it was she")
    site.said("finding_explained", id_)
    site.becomes(200, CHART)
