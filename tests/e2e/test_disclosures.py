"""Whose data each answer held: through real Envoy, from the service's answer to the question who
saw a patient.

One stack for each way of showing answers; each test looks at another side of what it recorded.
"""

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest
from answering_service import ANSWERS
from live import PATIENT, Account, Answer, Caller, Told, Tuned, account, told

from authz.demo.people import PATIENTS, Request, patient_id
from authz.demo.stack import running
from authz.record.privacy import load_key
from authz.store.client import connect

WAYS = {"observe": ("false", "true"), "hold": ("true", "false")}
SEARCH = Request("elm", "GET", "/fhir/Observation?_count=80")  # four of each of twenty patients
READ = Request("elm", "GET", "/fhir/Observation/obs-00404")  # of patient 101


class Answering(Tuned):
    """A stack whose service gives more kinds of answer, shown to authz in the way `way`."""

    def __init__(self, *args, way: str, **kwargs) -> None:
        off = dict(zip(("OBSERVE_OFF", "HOLD_OFF"), WAYS[way], strict=True))
        self.traces: list[bytes] = []
        self._collector = collecting(self.traces)
        to = f"http://127.0.0.1:{self._collector.server_port}"
        super().__init__(*args, envoy=off, ext_authz={"AUTHZ_EXT_AUTHZ__TRACING": to}, **kwargs)

    def stop(self) -> None:
        super().stop()
        self._collector.shutdown()
        self._collector.server_close()

    def metrics(self) -> bytes:
        """What all processes tell of themselves."""
        found = b""
        for part in self.parts.values():
            if "--metrics" in part.command:
                address = part.command[part.command.index("--metrics") + 1]
                with urlopen(f"http://{address}/metrics", timeout=10) as told:
                    found += told.read()
        return found

    def _add_service(self) -> None:
        super()._add_service()
        part = self.parts["service"]
        program = Path(__file__).with_name("answering_service.py")
        part.command = [sys.executable, str(program), "--listen", part.address]


def collecting(told: list[bytes]) -> ThreadingHTTPServer:
    """An OTLP collector that keeps what it is `told`."""

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@dataclass
class Day:
    """What was asked and answered, and what the log made of it."""

    way: str
    stack: Answering
    found: Account
    told: Told
    answers: dict[str, Answer] = field(default_factory=dict)
    bodies: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)

    def rows(self, name: str) -> list[dict]:
        """The disclosures of one answer."""
        return self.ask(
            "SELECT * FROM disclosures WHERE decision_id ="
            " (SELECT decision_id FROM accesses WHERE trace_id = %(trace)s) ORDER BY index",
            trace=self.answers[name].trace,
        )

    def ask(self, query: str, **values: object) -> list[dict]:
        with connect(self.stack.store) as client:
            rows, columns = client.execute(query, values, with_column_types=True)
        return [dict(zip([name for name, _ in columns], row, strict=True)) for row in rows]


async def _ask_all(stack: Answering, day_answers: dict, bodies: dict) -> None:
    requests = {name: Request("linden", "GET", f"/fhir/_fault/{name}") for name in ANSWERS}
    async with Caller(stack) as caller:
        for name, request in {"search": SEARCH, "read": READ, **requests}.items():
            day_answers[name], bodies[name] = await caller.fetch(request)


def _await_cut(stack: Answering) -> None:
    """Of an answer that broke off Envoy tells 5 s later that no more comes."""
    until = time.monotonic() + 60
    with connect(stack.store) as client:
        while client.execute("SELECT count() FROM disclosures WHERE reason_code = 'cut'") != [(1,)]:
            assert time.monotonic() < until
            time.sleep(0.2)


@pytest.fixture(
    scope="module", params=[pytest.param("observe", marks=pytest.mark.thorough), "hold"]
)
def day(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    stack = Answering(directory / "data", way=request.param, receiver=PATIENT)
    with running(stack, lambda _: None):
        answers: dict = {}
        bodies: dict = {}
        asyncio.run(_ask_all(stack, answers, bodies))
        if request.param == "observe":
            _await_cut(stack)
        yield Day(request.param, stack, account(stack), told(stack.store), answers, bodies)


def token(day, patient):
    return load_key(day.stack.data_dir / "ext-authz" / "privacy.key").token(patient)


def test_answers_pass_as_they_are(day):
    """The client gets every answer as the service gave it, without the service's own help."""
    for name, (status, headers, body, _) in ANSWERS.items():
        if name == "answer-half":
            continue
        assert day.answers[name].status == status
        got, got_headers = day.bodies[name]
        assert got == body
        assert "x-audit-patients" not in {key.lower() for key in got_headers}
        for key in ("Content-Type", "Content-Encoding"):
            assert got_headers.get(key) == headers.get(key)


def test_a_search_is_found_by_each_of_its_patients(day):
    """Twenty patients whom no request named: each leads to who saw them, when and why."""
    for number in range(1, 21):
        [row] = day.ask(
            "SELECT time, subject, roles, purpose FROM disclosures WHERE has(patients, %(token)s)"
            " AND subject = 'a.elm'",
            token=token(day, patient_id(number)),
        )
        assert (row["subject"], row["purpose"], list(row["roles"])) == (
            "a.elm",
            "HRESCH",
            ["analyst"],
        )
        requests = day.ask(
            "SELECT subject FROM requests WHERE has(patients, %(token)s) AND subject = 'a.elm'",
            token=token(day, patient_id(number)),
        )
        assert len(requests) == 1
    [row] = day.rows("search")
    assert json.loads(row["details"])["types"] == {"Observation": 80}


def test_a_single_record_names_its_patient(day):
    """A read by id says in the request nothing of whose it is."""
    [row] = day.rows("read")
    assert list(row["patients"]) == [token(day, patient_id(101))]
    assert (row["subject"], row["complete"]) == ("a.elm", True)
    assert (row["path"], row["purpose"]) == ("/fhir/Observation/{id}", "HRESCH")


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "answer-half"])
def test_each_kind_of_answer(day, name):
    """Right, or counted as unresolved with the reason."""
    reasons = {"answer-image": "content_type", "answer-other": "no_rule"}
    patients = ANSWERS[name][3]
    rows = day.rows(name)
    seen = [one for row in rows for one in row["patients"]]
    assert seen == [token(day, patient) for patient in patients]
    assert {row["reason_code"] for row in rows} == {reasons.get(name, "")}
    assert {row["complete"] for row in rows} == {name not in reasons}
    assert len(rows) == max(-(-len(patients) // 1000), 1)
    assert rows[0]["bytes_out"] == len(ANSWERS[name][2])


def test_an_answer_that_breaks_off(day):
    """Those who were seen are there, nobody else, and it says that it is not all. Where the client
    waited, it got nothing of it."""
    if day.way == "hold":
        assert day.answers["answer-half"].status in (502, 503)
        assert not any(row["patients"] for row in day.rows("answer-half"))
        return
    [row] = day.rows("answer-half")
    known = [token(day, patient) for patient in ANSWERS["answer-half"][3]]
    assert row["patients"] == known[: len(row["patients"])]
    assert (row["complete"], row["reason_code"]) == (False, "cut")


def test_the_count_comes_out_even(day):
    """Every access of a shown route has its disclosure, and those unresolved are counted."""
    assert day.told.gaps == {}
    assert day.found.report.gaps == {}
    assert day.found.report.verified
    asked = len(day.answers)
    assert day.told.sums["disclosed"] + day.told.sums["disclosed_late"] >= asked
    assert day.told.sums["unresolved"] == (3 if day.way == "observe" else 2)


def test_nothing_in_clear(day):
    """No identifier and no name from any answer is in a file of any process, in the database, in a
    metric or in a trace."""
    secret = ["large-0", "gzip-0", "line-0", "named-", "half-0", "Quillfeather"]
    secret += [f'"{patient_id(number)}"' for number in range(1, PATIENTS)]
    found: Counter[str] = Counter()
    for path in day.stack.data_dir.rglob("*"):
        if path.is_file() and path.suffix != ".rego":
            data = path.read_bytes()
            found.update({f"{path}: {text}": 1 for text in secret if text.encode() in data})
    assert found == {}
    told = {"metrics": day.stack.metrics(), "traces": b"".join(day.stack.traces)}
    assert b"authz_disclosures_total" in told["metrics"]
    assert b"resourceSpans" in told["traces"]
    assert [one for one in secret if any(one.encode() in said for said in told.values())] == []
    for row in day.ask("SELECT * FROM audit_log"):
        text = str(row)
        assert not [one for one in secret if one in text]
