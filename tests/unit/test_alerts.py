"""Alerts are about what is really served, have their runbooks, and fire when they should."""

import json
import re
import shutil
import subprocess
import time
import urllib.request

import pytest
import yaml
from programs import CHECKOUT, free_port, program

PROMETHEUS = CHECKOUT / "deploy" / "prometheus"
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES]
RUNBOOKS = (CHECKOUT / "docs" / "runbooks.md").read_text()


def test_prometheus_takes_them(tmp_path):
    """The documented commands end well: by Prometheus' own reckoning each rule is one, and fires
    when its test says so and at no other time. None is left without a time at which it fires."""
    program("promtool", "prometheus")
    shutil.copytree(PROMETHEUS, tmp_path / "rules")
    text = (PROMETHEUS / "README.md").read_text()
    [block] = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        ["sh", "-eu", "-c", block],
        cwd=tmp_path / "rules",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(NAMES)} rules found" in done.stdout
    assert "https://wiki.example/authz/runbooks.md#" in (tmp_path / "rules/alerts.yaml").read_text()
    tested = re.findall(r'alertname="(\w+)"', (PROMETHEUS / "alerts_test.yaml").read_text())
    assert {*tested} == {*NAMES}
    assert len({*NAMES}) == len(NAMES) > 20


@pytest.fixture(scope="module")
def metrics() -> dict[str, list[str]]:
    """Each metric that a process serves, and its labels: the reference is made of the code."""
    text = (CHECKOUT / "docs" / "reference" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| \w+ \| (.*?) \|", text, re.MULTILINE)
    return {name: re.findall(r"`(\w+)`", labels) for name, labels in rows}


def test_they_ask_for_what_is_served(metrics):
    """Each metric is one that a process registers, with the labels that are asked for."""
    for rule in RULES:
        asked = re.findall(r"\b(authz_\w+)(?:\{([^}]*)\})?", rule["expr"])
        for name, labels in asked:
            assert name in metrics, f"{rule['alert']}: no process serves {name}"
            for label in re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\"", labels):
                assert label in metrics[name], f"{rule['alert']}: {name} has no label {label}"
        others = {*re.findall(r"\b(\w+)(?=\[|\{| == 0$)", rule["expr"])} - {n for n, _ in asked}
        assert others <= {"up", "bundle_failed_load_counter"}, rule["alert"]


def test_kinds_and_reasons_are_real():
    """What alerts ask labels for stands in the documentation's tables of them, and each kind of
    gap has its alert."""
    expressions = " ".join(rule["expr"] for rule in RULES)
    kinds = {k for found in re.findall(r'kind=~"([^"]+)"', expressions) for k in found.split("|")}
    completeness = (CHECKOUT / "docs" / "completeness.md").read_text()
    table = completeness.partition("## Gaps")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert kinds == {kind for row in rows for kind in re.findall(r"`(\w+)`", row)}
    operating = (CHECKOUT / "docs" / "operating.md").read_text()
    for reason in re.findall(r'reason_code="(\w+)"', expressions):
        assert f"| `{reason}` |" in operating


def test_opa_counts_bundles_it_does_not_take(opa, tmp_path):
    """A real OPA whose bundle cannot be had counts it under the name that the alert asks for."""
    address = f"127.0.0.1:{free_port()}"
    configuration = {
        "services": {"nobody": {"url": f"http://127.0.0.1:{free_port()}"}},
        "bundles": {"authz": {"service": "nobody", "resource": "bundle.tar.gz"}},
        "status": {"prometheus": True},
    }
    (tmp_path / "opa.yaml").write_text(json.dumps(configuration))
    command = [opa, "run", "--server", "-a", address, "-c", tmp_path / "opa.yaml"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wanted = re.compile(
                r'^bundle_failed_load_counter\{.*name="authz"\} [1-9]', re.MULTILINE
            )
            ends = time.monotonic() + 30
            while not wanted.search(_read(f"http://{address}/metrics")):
                assert time.monotonic() < ends
                time.sleep(0.1)
        finally:
            process.terminate()


def _read(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_each_has_its_runbook(rule):
    """Its address leads to a heading of the page, which says how to look, how to mend, and whether
    to wake somebody: `critical` is for what wakes people."""
    page, _, anchor = rule["annotations"]["runbook_url"].rpartition("#")
    assert page == "https://authz.example/docs/runbooks.md"
    assert anchor == rule["alert"].lower()
    found = re.search(rf"^### {rule['alert']}\n(.*?)(?=^##|\Z)", RUNBOOKS, re.MULTILINE | re.DOTALL)
    assert found, "no runbook"
    assert re.findall(r"^- \*\*(Look|Mend|Wake somebody)\*\*", found[1], re.MULTILINE) == [
        *("Look", "Mend", "Wake somebody")
    ]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    wakes = re.search(r"\*\*Wake somebody\*\*: (yes|no|when|only|in working hours)", found[1])
    assert wakes
    assert (wakes[1] == "yes") == (rule["labels"]["severity"] == "critical")


def test_no_runbook_is_left_over():
    """Each runbook is an alert's."""
    assert {*re.findall(r"^### (\w+)$", RUNBOOKS, re.MULTILINE)} == {*NAMES}
