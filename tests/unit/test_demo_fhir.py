"""The sample FHIR service: what it answers, and how it misbehaves when asked to."""

import asyncio
import itertools
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from urllib.error import URLError

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from authz.demo.fhir import make_app, synthetic
from authz.demo.people import plan

FHIR_JSON = "application/fhir+json"


def with_service(use: Callable[[TestClient], Awaitable[None]], patients: int = 200) -> None:
    """Runs `use` with a client of a fresh service; its connections close at the end."""

    async def session() -> None:
        async with TestClient(TestServer(make_app(patients))) as client:
            await use(client)

    asyncio.run(session())


async def get(client: TestClient, path: str, status: int = 200) -> dict:
    async with client.get(path, allow_redirects=False) as response:
        assert response.status == status
        assert response.content_type == FHIR_JSON
        return await response.json(content_type=FHIR_JSON)


def observation(patient: str) -> dict:
    return {"resourceType": "Observation", "subject": {"reference": f"Patient/{patient}"}}


def test_data_is_the_same_every_time() -> None:
    """Two services hold the same records, and all are marked as test data."""
    store = synthetic(20)
    assert store == synthetic(20)
    for records in store.resources.values():
        assert all(record["meta"]["security"][0]["code"] == "HTEST" for record in records.values())


def test_records_are_numbered_in_the_order_of_the_patients() -> None:
    """Patient n has observations 4n-3 to 4n, encounters 2n-1 and 2n, and claim n."""
    resources = synthetic(200).resources
    assert {kind: len(records) for kind, records in resources.items()} == {
        "Patient": 200,
        "Observation": 800,
        "Encounter": 400,
        "Claim": 200,
    }
    assert resources["Observation"]["obs-00012"]["subject"]["reference"] == "Patient/p-0003"
    assert resources["Encounter"]["enc-00005"]["subject"]["reference"] == "Patient/p-0003"
    assert resources["Claim"]["clm-00003"]["patient"]["reference"] == "Patient/p-0003"


def test_answers_the_fields_that_are_asked_for() -> None:
    """With `_elements`, reads and searches answer these fields, and those that FHIR wants."""

    async def use(client: TestClient) -> None:
        read = await get(client, "/fhir/Patient/p-0001?_elements=name,gender")
        found = await get(client, "/fhir/Patient?_id=p-0001&_elements=name,gender")
        assert read.keys() == {"resourceType", "id", "meta", "name", "gender"}
        assert found["entry"][0]["resource"] == read

    with_service(use)


def test_reads_each_type() -> None:
    """A read answers the resource of that type and id."""

    async def use(client: TestClient) -> None:
        for kind, name in [
            ("Patient", "p-0001"),
            ("Observation", "obs-00001"),
            ("Encounter", "enc-00001"),
            ("Claim", "clm-00001"),
        ]:
            record = await get(client, f"/fhir/{kind}/{name}")
            assert (record["resourceType"], record["id"]) == (kind, name)

    with_service(use)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/fhir/Patient/p-9999", 404),
        ("/fhir/Medication/m-1", 404),
        ("/fhir/Medication", 404),
        ("/elsewhere", 404),
        ("/fhir/_fault/unheard-of", 404),
        ("/fhir/Patient?_count=many", 400),
        ("/fhir/Patient?_offset=-1", 400),
        ("/fhir/Patient?unheard-of=1", 400),
        ("/fhir/Claim?subject=Patient/p-0001", 400),
        ("/fhir/_fault/slow?s=long", 400),
    ],
)
def test_errors_are_operation_outcomes(path: str, status: int) -> None:
    """What cannot be answered is answered with an OperationOutcome that repeats no input."""

    async def use(client: TestClient) -> None:
        outcome = await get(client, path, status)
        assert outcome["resourceType"] == "OperationOutcome"
        assert outcome["issue"][0]["severity"] == "error"
        assert "p-9999" not in json.dumps(outcome)

    with_service(use, patients=1)


def test_method_not_allowed_is_an_operation_outcome() -> None:
    """A method that a path does not take gets 405 and an OperationOutcome."""

    async def use(client: TestClient) -> None:
        async with client.delete("/fhir/Patient") as response:
            assert response.status == 405
            outcome = await response.json(content_type=FHIR_JSON)
            assert outcome["resourceType"] == "OperationOutcome"

    with_service(use, patients=1)


def test_search_keeps_to_the_patient() -> None:
    """A search by patient, by either parameter, holds that patient's records and no others."""

    async def use(client: TestClient) -> None:
        for query in ("patient=p-0003", "patient=Patient/p-0003", "subject=Patient/p-0003"):
            bundle = await get(client, f"/fhir/Observation?{query}")
            assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "searchset")
            found = [entry["resource"]["subject"]["reference"] for entry in bundle["entry"]]
            assert found == ["Patient/p-0003"] * 4
        both = await get(client, "/fhir/Observation?patient=p-0001,p-0002")
        assert both["total"] == 8
        one = await get(client, "/fhir/Observation?patient=p-0001&_id=obs-00002,obs-00005")
        assert [entry["resource"]["id"] for entry in one["entry"]] == ["obs-00002"]
        none = await get(client, "/fhir/Observation?patient=p-0001&subject=Patient/p-0002")
        assert none["total"] == 0
        empty = await get(client, "/fhir/Observation?patient=")
        assert empty["total"] == 0

    with_service(use)


def test_search_by_name() -> None:
    """A search by name finds the patients with a name that starts so, in any case of letters."""

    async def use(client: TestClient) -> None:
        bundle = await get(client, "/fhir/Patient?name=testW&_count=200")
        families = {entry["resource"]["name"][0]["family"] for entry in bundle["entry"]}
        assert families == {"Testwell"}

    with_service(use)


def test_paging_links_lead_through_everything_once() -> None:
    """Following `next` from the first page meets every record once; `previous` leads back."""

    async def use(client: TestClient) -> None:
        seen: list[str] = []
        path = "/fhir/Patient?_count=20"
        for page in itertools.count():
            bundle = await get(client, path)
            seen += [entry["resource"]["id"] for entry in bundle["entry"]]
            links = {link["relation"]: link["url"] for link in bundle["link"]}
            assert ("previous" in links) == (page > 0)
            if "next" not in links:
                break
            path = links["next"]
        assert seen == [f"p-{number:04d}" for number in range(1, 51)]

    with_service(use, patients=50)


def test_a_page_has_a_limit() -> None:
    """However much is asked for, a page has at most 200 entries."""

    async def use(client: TestClient) -> None:
        bundle = await get(client, "/fhir/Observation?_count=100000")
        assert (len(bundle["entry"]), bundle["total"]) == (200, 800)

    with_service(use)


def test_create_read_update_delete() -> None:
    """A created record is found where Location says, can be updated, and is gone once deleted."""

    async def use(client: TestClient) -> None:
        async with client.post("/fhir/Observation", json=observation("p-0001")) as response:
            assert response.status == 201
            place = response.headers["Location"]
        assert place == "/fhir/Observation/obs-00009"
        record = await get(client, place)
        async with client.put(place, json={**record, "status": "amended"}) as response:
            assert response.status == 200
        assert (await get(client, place))["status"] == "amended"
        async with client.delete(place) as response:
            assert response.status == 204
        await get(client, place, 404)
        async with client.post("/fhir/Patient", json={"resourceType": "Patient"}) as response:
            assert response.headers["Location"] == "/fhir/Patient/p-0003"

    with_service(use, patients=2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"resourceType": "Observation"}',
        b'{"resourceType": "Observation", "subject": {"reference": ["Patient/p-0001"]}}',
        json.dumps(observation("p-9999")).encode(),
        json.dumps({**observation("p-0001"), "resourceType": "Encounter"}).encode(),
    ],
)
def test_bad_bodies_are_refused(body: bytes) -> None:
    """A body that is no such resource, or is of a patient who is not here, changes nothing."""

    async def use(client: TestClient) -> None:
        for method, path in (("POST", "/fhir/Observation"), ("PUT", "/fhir/Observation/obs-00001")):
            async with client.request(method, path, data=body) as response:
                assert response.status == 400
        assert (await get(client, "/fhir/Observation"))["total"] == 4
        assert "valueQuantity" in await get(client, "/fhir/Observation/obs-00001")

    with_service(use, patients=1)


def test_update_needs_the_same_id() -> None:
    """An update whose body has another id than its path is refused."""

    async def use(client: TestClient) -> None:
        body = {**observation("p-0001"), "id": "obs-00002"}
        async with client.put("/fhir/Observation/obs-00001", json=body) as response:
            assert response.status == 400

    with_service(use, patients=1)


def test_metadata_describes_the_service() -> None:
    """The CapabilityStatement is one of FHIR R4 and lists the four types."""

    async def use(client: TestClient) -> None:
        statement = await get(client, "/fhir/metadata")
        assert statement["resourceType"] == "CapabilityStatement"
        assert statement["fhirVersion"] == "4.0.1"
        types = {resource["type"] for resource in statement["rest"][0]["resource"]}
        assert types == {"Patient", "Observation", "Encounter", "Claim"}

    with_service(use, patients=1)


@pytest.mark.parametrize(
    ("what", "status"),
    [("redirect", 302), ("unauthorized", 401), ("busy", 429), ("unavailable", 503)],
)
def test_fault_statuses(what: str, status: int) -> None:
    """Each fault that is a status answers with it, again and again."""

    async def use(client: TestClient) -> None:
        await get(client, f"/fhir/_fault/{what}", status)
        await get(client, f"/fhir/_fault/{what}", status)

    with_service(use, patients=1)


def test_flaky_fails_once_for_each_key() -> None:
    """`flaky` fails the first time a key is used, and is well after that."""

    async def use(client: TestClient) -> None:
        for key in ("a", "b"):
            await get(client, f"/fhir/_fault/flaky?k={key}", 503)
            await get(client, f"/fhir/_fault/flaky?k={key}", 200)

    with_service(use, patients=1)


def test_slow_and_stream_take_their_time() -> None:
    """`slow` answers late, and `stream` answers at once but ends late, in pieces."""

    async def use(client: TestClient) -> None:
        began = time.monotonic()
        await get(client, "/fhir/_fault/slow?s=0.3")
        assert time.monotonic() - began >= 0.3
        began = time.monotonic()
        async with client.get("/fhir/_fault/stream?s=0.3") as response:
            assert response.headers["Transfer-Encoding"] == "chunked"
            assert json.loads(await response.read())
        assert time.monotonic() - began >= 0.3

    with_service(use, patients=1)


def test_reset_closes_the_connection() -> None:
    """`reset` ends the connection without an answer, and the service lives on."""

    async def use(client: TestClient) -> None:
        with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
            await client.get("/fhir/_fault/reset")
        await get(client, "/fhir/metadata")

    with_service(use, patients=1)


def test_what_the_plan_allows_succeeds() -> None:
    """Every request that the policy lets through is one the service can do."""

    async def use(client: TestClient) -> None:
        for request in plan(300):
            if request.expect != "allow":
                continue
            async with client.request(
                request.method, request.path, headers=request.headers, data=request.body or None
            ) as response:
                assert response.status in {200, 201}, request

    with_service(use)


def test_starts_as_a_program_and_stops_when_told() -> None:
    """`python -m authz.demo.fhir --listen` serves until SIGTERM, prints nothing, and ends well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "authz.demo.fhir", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            for _ in range(100):
                try:
                    url = f"http://127.0.0.1:{port}/fhir/Patient/p-0200"
                    with urllib.request.urlopen(url, timeout=5) as response:
                        assert json.load(response)["id"] == "p-0200"
                    break
                except URLError:
                    time.sleep(0.1)
            else:
                pytest.fail("the service did not start")
        finally:
            process.terminate()
        output, _ = process.communicate(timeout=10)
    assert (process.returncode, output) == (0, b"")
