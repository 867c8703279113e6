"""Envoy and ext-authz killed while answers are shown: no wrong name, what was missed is counted."""

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from random import Random
from urllib.parse import parse_qs, urlsplit

import pytest
from live import ACCOUNTS, Answer, Tuned, account, during, passed, told

from authz.demo.people import PATIENTS, Request, patient_id
from authz.demo.stack import running
from authz.record.privacy import load_key
from authz.store.client import connect

PAGE = 40
WAYS = {"observe": ("false", "true"), "hold": ("true", "false")}
PER_PATIENT = 4  # observations, in the order of the patients
KILLS = 4


def searches() -> Iterator[Request]:
    """Pages of observations, each of other patients."""
    for number in itertools.count():
        offset = number * PAGE % (PATIENTS * PER_PATIENT)
        yield Request("elm", "GET", f"/fhir/Observation?_count={PAGE}&_offset={offset}")


def named(answer: Answer) -> list[str]:
    """The patients of the page that was asked for."""
    offset = int(parse_qs(urlsplit(answer.request.path).query)["_offset"][0])
    first, last = offset // PER_PATIENT, (offset + PAGE - 1) // PER_PATIENT
    return [patient_id(number + 1) for number in range(first, last + 1)]


@pytest.mark.parametrize("way", [pytest.param("observe", marks=pytest.mark.thorough), "hold"])
@pytest.mark.parametrize("part", ["ext-authz", pytest.param("envoy", marks=pytest.mark.thorough)])
def test_killed(way, part, tmp_path):
    """Every answer's disclosure has its own patients or fewer; those without are told as gaps; and
    where answers wait, none that came was not recorded."""
    off = dict(zip(("OBSERVE_OFF", "HOLD_OFF"), WAYS[way], strict=True))
    stack = Tuned(tmp_path / "data", envoy=off, receiver=ACCOUNTS)
    random = Random(7)

    sent: list[Answer] = []

    def disturb() -> None:
        for _ in range(KILLS):
            assert passed(sent, 60 // KILLS)
            time.sleep(random.uniform(0.2, 0.8))
            stack.parts[part].kill()
            time.sleep(random.uniform(0, 0.2))
            stack.restart(part)
        time.sleep(0.5)

    with running(stack, lambda _: None):
        during(disturb, stack, searches(), answers=sent)
        answers = [answer for answer in sent if answer.status == 200]
        found = account(stack)
        time.sleep(6)  # Envoy tells that late of an answer whose stream to authz broke
        log = told(stack.store)
        key = load_key(stack.data_dir / "ext-authz" / "privacy.key")
        with connect(stack.store) as client:
            query = "SELECT decision_id, patients, complete, reason_code FROM disclosures"
            rows = client.execute(query)
            asked = dict(client.execute("SELECT trace_id, decision_id FROM decisions"))
    tokens = {asked[a.trace]: [key.token(name) for name in named(a)] for a in answers}
    shown: Counter[str] = Counter()
    for decision_id, patients, complete, reason in rows:
        if decision_id in tokens:
            shown[decision_id] += 1
            whole = tokens[decision_id]
            assert patients == (whole if complete else whole[: len(patients)]), reason
    assert len(answers) > 50
    assert max(shown.values()) == 1
    undisclosed = [one for one in tokens if one not in shown]
    if way == "hold":
        assert not undisclosed, "an answer that was not recorded"
    assert len(undisclosed) <= log.gaps["no_disclosure"] + log.gaps["no_access"]
    assert found.report.verified
    print(way, part, len(answers), "answers,", len(undisclosed), "without,", dict(log.gaps))
