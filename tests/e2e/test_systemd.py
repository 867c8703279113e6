"""docs/bare-hosts.md, command by command, on a host of its own: `make namespaces`."""

import json
import os
import re
import time
from dataclasses import dataclass, field

import pytest
import yaml
from host import Host, host
from programs import CHECKOUT, program, until

from authz.demo.people import PEOPLE, Keys

pytestmark = [pytest.mark.namespaces, pytest.mark.opa]

GUIDE = CHECKOUT / "docs" / "bare-hosts.md"
SERVICES = ("opa", "receiver", "ext-authz", "envoy", "console", "watch")
CHART = "http://127.0.0.1:8080/fhir/Patient/p-0001"
# What stands for others' programs: the user's ClickHouse, and the service.
STANDINS = {
    "clickhouse-server": "/opt/authz/bin/authz serve clickhouse --data-dir /var/lib/clickhouse"
    " --tcp 9000 --json",
    "fhir": "/bin/sh -c 'LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/src:/opt/site exec"
    " /opt/python/bin/python3 -m authz.demo.fhir --listen 127.0.0.1:8000'",
}


[SIGN_IN] = re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)


@dataclass
class Found:
    host: Host
    keys: Keys
    told: dict[str, str] = field(default_factory=dict)
    """What each command of the guide printed, by the block's first words."""
    states: dict[str, str] = field(default_factory=dict)
    """How each service was when all of the guide was done."""


def blocks() -> list[str]:
    """The guide's commands, without the one that fetches programs, and the example of a drop-in."""
    found = re.findall(r"^```text\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert sum("bin/pip" in block for block in found) == 1
    kept = [re.sub(r"^(python3 -m venv|/opt/authz/bin/pip) .*\n", "", b, flags=re.MULTILINE)
            for b in found]  # fmt: skip
    return [block for block in kept if not block.startswith("[Service]")]


def standins(here: Host) -> str:
    """Starts them; the store's URL."""
    for name, command in STANDINS.items():
        unit = f"[Service]\nExecStart={command}\nStandardError=append:/run/{name}.log\n"
        here.path(f"/run/units/{name}.service").write_text(unit)
    here.do("systemctl daemon-reload && systemctl start clickhouse-server fhir")
    password = here.path("/var/lib/clickhouse/admin.password")
    assert until(password.exists, 60)
    ready = "curl -s 127.0.0.1:9000 >/dev/null || [ $? = 52 ]"
    assert until(lambda: here.run(ready).returncode == 0, 60)
    return f"clickhouse://admin:{password.read_text().strip()}@127.0.0.1:9000/authz"


@pytest.fixture(scope="module")
def found(tmp_path_factory, opa):
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces")
    for name, package in (("envsubst", "gettext-base"), ("nsenter", "util-linux"),
                          ("systemctl", "systemd"), ("curl", "curl")):  # fmt: skip
        program(name, package)
    kept = tmp_path_factory.mktemp("host")
    kept.chmod(0o755)
    with host(kept, opa) as here:
        store = standins(here)
        made = Found(here, Keys())
        token = made.keys.token(PEOPLE["alder"])
        given = {f"{name}_STORE": store for name in ("RECEIVER", "READER", "MIGRATOR")}
        for block in blocks():
            if "systemctl daemon-reload" in block:
                jwks = json.dumps(made.keys.jwks())
                here.path("/etc/authz/jwks.json").write_text(jwks)
                log = "[Service]\nStandardError=append:/run/authz-%n.log\n"
                here.path("/etc/systemd/system/authz-.service.d/log.conf").write_text(log)
            if "curl" in block:
                assert until(lambda: here.run("curl -s 127.0.0.1:8080").returncode == 0, 60)
                assert until(lambda: status(made, "alder") == 200, 60)
            if "authz-console" in block:
                configuration = here.path("/etc/authz/authz.yaml")
                ours, more = map(yaml.safe_load, (configuration.read_text(), SIGN_IN))
                ours["console"] |= more["console"]
                configuration.write_text(yaml.safe_dump(ours))
            made.told[block.splitlines()[0]] = here.do(block, TOKEN=token, **given)
        for name in SERVICES:
            show = f"systemctl show -p ActiveState,SubState,NRestarts,User authz-{name}"
            made.states[name] = here.do(show)
        yield made


def now_us() -> int:
    return time.time_ns() // 1000


def status(found: Found, name: str) -> int:
    token = found.keys.token(PEOPLE[name])
    command = f'curl -s -o /dev/null -w "%{{http_code}}" -H "authorization: Bearer $T" {CHART}'
    return int(found.host.run(command, T=token).stdout)  # 0: nobody listens


def test_requests(found):
    """The guide's request is served, and somebody else's is denied."""
    [shown] = [text for text in found.told.values() if text.startswith("HTTP/1.1")]
    assert shown.startswith("HTTP/1.1 200")
    assert (status(found, "alder"), status(found, "birch")) == (200, 403)


def test_all_are_up(found):
    """No service was started twice, or ended by what it is not allowed."""
    for name in SERVICES:
        state = dict(line.split("=", 1) for line in found.states[name].splitlines())
        assert state == {"ActiveState": "active", "SubState": "running", "NRestarts": "0",
                         "User": f"authz-{name}"}, state  # fmt: skip
    page = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:9393/"
    assert until(lambda: found.host.run(page).stdout == "303", 60)  # to where people sign in


def test_verified(found):
    """The log is intact, and the result is kept."""
    found.host.do("systemctl start authz-verify")
    results = sorted(found.host.path("/var/lib/authz/verify/results").glob("*.json"))
    assert results
    assert json.loads(results[-1].read_text())["verified"] is True
    timer = found.host.do("systemctl list-timers --all authz-verify.timer")
    assert "authz-verify.service" in timer


def test_keys_are_kept_apart(found):
    """No service can read another's directory, the keys, or the passwords; none can write outside
    its own directory."""
    for name in SERVICES:
        main = found.host.do(f"systemctl show -p MainPID --value authz-{name}").strip()
        inside = f"nsenter -t {main} -m -S $(id -u authz-{name}) -G $(id -g authz-{name})"
        for other in ("ext-authz", "receiver", "watch"):
            if other != name:
                done = found.host.run(f"{inside} ls /var/lib/authz/{other}")
                assert done.returncode != 0, (name, other)
        for path in ("/etc/authz/keys/privacy.key", "/etc/authz/receiver.env"):
            assert found.host.run(f"{inside} cat {path}").returncode != 0, (name, path)
        assert found.host.run(f"{inside} touch /etc/authz/x /var/lib/x").returncode != 0


def test_what_is_killed_comes_back(found):
    """A service that is killed is started again; requests go on when it is up."""
    for name in ("opa", "ext-authz", "receiver"):
        found.host.do(f"systemctl kill -s KILL authz-{name}")
        assert until(lambda: status(found, "alder") == 200, 60), name


def counts(found, since_us):
    """The allowed decisions and the accesses that reached the service, since then."""
    query = (
        "SELECT countIf(kind = 'decision' AND allowed),"
        " countIf(kind = 'access' AND upstream != '')"
        f" FROM audit_log WHERE time >= fromUnixTimestamp64Micro(toInt64({since_us}))"
    )
    ask = (
        'exec /opt/python/bin/python3 -c "import sys; from authz.store.client import connect;'
        ' print(*connect(sys.argv[1]).execute(sys.argv[2])[0])" "$STORE" "$QUERY"'
    )
    password = found.host.path("/var/lib/clickhouse/admin.password").read_text().strip()
    told = found.host.do(
        ask, LD_LIBRARY_PATH="/opt/python/lib", PYTHONPATH="/opt/src:/opt/site", QUERY=query,
        STORE=f"clickhouse://admin:{password}@127.0.0.1:9000/authz",
    )  # fmt: skip
    return tuple(map(int, told.split()))


def test_a_stop_loses_nothing(found):
    """Stopped in systemd's order, each ends by itself and in time; the log has a decision and an
    access for every request that was answered."""
    began = now_us()
    # Envoy has found its receiver again, if that was killed before.
    assert until(lambda: status(found, "alder") == 200 and counts(found, began)[1], 60)
    since = now_us()
    answers = [status(found, "alder") for _ in range(20)]
    assert set(answers) == {200}
    found.host.do("systemctl stop authz-envoy authz-ext-authz authz-receiver", 180)
    for name in ("envoy", "ext-authz", "receiver"):
        show = f"systemctl show -p Result,ExecMainStatus authz-{name}"
        assert set(found.host.do(show).split()) == {"Result=success", "ExecMainStatus=0"}, name
    assert counts(found, since) == (20, 20)
    found.host.do("systemctl start authz-receiver authz-ext-authz authz-envoy")
    assert until(lambda: status(found, "alder") == 200, 60)
