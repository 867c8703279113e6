"""Requests that try to get by the policy, through a real Envoy: none reaches what is denied.

Not our status is the judge, but what the service got: its path, method and person in every way that
services read them (readings.py, hostile_world.py), held against the decision in the log.
"""

import re
from collections import Counter

import pytest
from hostile_world import LISTER, READER, SENDERS, denied, load, opened, seen
from live import edited
from readings import lenient, typical

LIST = load()
UNPROTECTED = edited(
    ("normalize_path: true", "normalize_path: false"),
    ("merge_slashes: true", "merge_slashes: false"),
    (
        "path_with_escaped_slashes_action: REJECT_REQUEST",
        "path_with_escaped_slashes_action: KEEP_UNCHANGED",
    ),
)
BARE, UNSAFE = (
    pytest.param(name, marks=pytest.mark.thorough) for name in ("unprotected", "unsafe_allowed")
)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The bootstrap and configuration as shipped."""
    yield from opened(tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="module")
def unprotected(tmp_path_factory):
    """Envoy normalises no path: only our own check of paths stands."""
    yield from opened(tmp_path_factory.mktemp("unprotected"), UNPROTECTED)


@pytest.fixture(scope="module")
def unsafe_allowed(tmp_path_factory):
    """Our own check of paths is off: only Envoy's normalisation stands."""
    yield from opened(tmp_path_factory.mktemp("unsafe"), unsafe_paths="allow")


@pytest.fixture(params=["shipped", BARE, UNSAFE])
def world(request):
    return request.getfixturevalue(request.param)


def breaches(world):
    """What reached the service and is denied to whoever was let through, with the reason."""
    found = []
    for served in world.served:
        decision = world.decision(served)
        why = denied(served, decision.subject) if decision else "nobody allowed it"
        if why:
            found.append((world.name(served), decision.subject if decision else "", why))
    return found


@pytest.mark.parametrize("name", ["shipped", BARE])
def test_nothing_gets_through(request, name):
    """No request reaches a resource that the policy denies, even if Envoy leaves paths alone."""
    assert breaches(request.getfixturevalue(name)) == []


@pytest.mark.thorough
def test_unsafe_paths_allowed(unsafe_allowed):
    """With `unsafe_paths: allow`, a policy that names what is allowed still holds. One that names
    what is forbidden does not, and nothing but the path is misread."""
    found = breaches(unsafe_allowed)
    assert [breach for breach in found if breach[1] != LISTER.sub] == []
    assert found, "the judge sees nothing"
    assert {why.partition(" [")[0] for _, _, why in found} == {"it may be"}
    assert not [name for name, _, _ in found if "identity" in name or "token" in name]


@pytest.mark.parametrize("name", ["shipped", BARE])
def test_one_meaning(request, name):
    """Each path that reaches the service has one meaning, and it is the one that was decided on."""
    for served in request.getfixturevalue(name).served:
        assert typical(served.target) == {seen(served)}, served.target


def test_each_has_its_decision(world):
    """Whatever reached the service has exactly one decision, an allow for that method, host and
    path, and one access that names it."""
    assert world.served
    for served in world.served:
        decision = world.decision(served)
        assert decision, served.head
        assert len(world.reached[decision.decision_id]) == 1, served.head
        if served.target.isascii():
            assert world.same_resource(served, decision), (served.head, decision)
    ids = Counter(one for served in world.served for one in served.values("x-request-id"))
    assert set(ids.values()) == {1}


def test_the_rest_is_refused(world):
    """Whatever did not reach the service was answered with 4xx or 5xx, or with nothing."""
    numbers = Counter(number for heard in world.heard.values() for number in heard.served)
    assert set(numbers.values()) == {1}
    assert numbers.keys() <= {served.number for served in world.served}
    for name, heard in world.heard.items():
        passed = [status for status in heard.statuses if status < 400]
        assert passed == [200] * len(heard.served), name
        assert all(400 <= status < 600 for status in heard.statuses if status != 200), name


def test_what_the_service_gets_is_plain(world):
    """Requests reach the service with one framing, one host, one request line and no control
    character: nothing in them can be read as a second request."""
    assert not [line for line in world.lines if "unreadable" in line]
    for served in world.served:
        assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n", served.head)
        assert re.fullmatch(rb"[A-Z]+ [^ ]+ HTTP/1\.1", served.head.partition(b"\r\n")[0])
        names = Counter(name for name, _ in served.headers)
        assert names["host"] == 1
        assert names["authorization"] == 1
        assert names["content-length"] + names["transfer-encoding"] <= 1, served.head
        assert set(served.values("transfer-encoding")) <= {"chunked"}
        assert not {"connection", "upgrade"} & names.keys()


def test_log(world):
    """After all of it the log verifies, with no gap between decisions and accesses."""
    report = world.found.report
    assert report.verified, report.findings
    assert (report.gaps, report.pending) == ({}, 0)
    assert not world.found.doubled
    assert not world.found.invented


def test_both_get_what_they_may(shipped):
    """The allowed record is served to both, or the test would show nothing."""
    reached = {(s.target, shipped.decision(s).subject) for s in shipped.served}
    assert {(b"/fhir/Patient/p-allowed", who.sub) for who in SENDERS} <= reached
    subjects = Counter(shipped.decision(served).subject for served in shipped.served)
    assert subjects.keys() == {READER.sub, LISTER.sub}


# -- the list and the judge


def test_the_list():
    """Each entry has a name of its own, where it comes from, what it aims at, and what to send."""
    assert len(LIST) >= 500
    assert len({entry["name"] for entry in LIST}) == len(LIST)
    for entry in LIST:
        assert entry["from"], entry
        assert entry["aim"], entry
        assert ("send" in entry) != ("h2" in entry), entry
    sources = {entry["from"] for entry in LIST}
    assert {
        "CVE-2019-9900", "CVE-2019-9901", "CVE-2020-25017", "CVE-2021-29492", "CVE-2021-32777",
        "CVE-2021-32779", "CVE-2023-27487", "CVE-2023-27488", "CVE-2023-27491", "CVE-2023-27493",
        "CVE-2024-45806", "CVE-2025-64763", "CVE-2026-26205", "CVE-2026-26308", "CVE-2026-48743",
        "CVE-2026-73511", "CVE-2026-73547", "CVE-2026-73548", "CVE-2026-73551", "CVE-2026-73552",
        "CVE-2026-73553", "ISTIO-SECURITY-2021-005", "ISTIO-SECURITY-2021-008",
    } <= sources  # fmt: skip


@pytest.mark.parametrize(
    "target",
    [
        "/admin", "//admin", "/fhir/../admin", "/fhir/%2e%2e/admin", "/fhir/%252e%252e/admin",
        "/fhir%2f..%2fadmin", "/fhir/%25%32%65%25%32%65/admin", "/fhir\\..\\admin", "/admin;x=1",
        "/;x/admin", "/fhir/..;x/admin", "/admin%3bx", "/admin%00.html", "/admin#x", "/admin%23x",
        "/admin%3fx", "/admin?x", "/%61dmin", "/fhir/%c0%ae%c0%ae/admin", "/fhir/%u002e./admin",
        "/fhir/%2>%2>/admin", "/fhir/%e0%80%ae%e0%80%ae/admin", "/ad%09min", "/admin%ff",
        "/a/b/../../admin", "/admin/x/..", "/fhir/%f0%80%80%ae%2e/admin",
    ],
)  # fmt: skip
def test_the_judge_sees(target):
    """Every way to write the administration's path is read as such by some service."""
    assert typical(target.encode()) & {b"/admin", b"/admin/"}


@pytest.mark.parametrize(
    "target", ["/ADMIN", "/admin/", "/admin.json", "/admin.", "/admin%20", "/%EF%BC%8Fadmin"]
)
def test_the_judge_sees_loosely(target):
    """Services that are not exact about names are thought of too."""
    assert b"/admin" in lenient(target.encode())


def test_the_judge_lets_plain_paths_be():
    """A path without tricks has one meaning."""
    for target in (
        b"/fhir/Patient/p-allowed",
        b"/a%20b/%C3%A9?x=/../y",
        b"/fhir/Patient/",
        b"/...",
    ):
        assert len(typical(target)) == 1
