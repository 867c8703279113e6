"""`authz doctor` on what really runs: Envoys with and without proxies in front, and ext-authz."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Certificates
from programs import AUTHZ, CHECKOUT, free_port, run, until, world

from authz.demo.people import PEOPLE
from authz.demo.stack import Part, Stack, envoy_program, running
from authz.policy import opa_process
from authz.policy.source import load

PROXY = """
admin: {address: {pipe: {path: "ADMIN"}}}
static_resources:
  listeners:
    - name: front
      address: {socket_address: {address: 127.0.0.1, port_value: LISTEN}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": MANAGER
                stat_prefix: front
                use_remote_address: true
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes: [{match: {prefix: /}, route: {cluster: next}}]
  clusters:
    - name: next
      type: STATIC
      connect_timeout: 1s
      load_assignment:
        cluster_name: next
        endpoints:
          - lb_endpoints:
              - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: NEXT}}}
""".replace(
    "MANAGER",
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
    ".HttpConnectionManager",
)


@dataclass(frozen=True)
class Ground:
    """A stack, whose Envoy trusts no proxy; a second Envoy that trusts one; a proxy before each."""

    stack: Stack
    addresses: dict[tuple[int, int], str]
    """By (trusted hops, proxies in front)."""
    admins: dict[int, str]
    token: Path


def envoy_part(directory: Path, name: str, text: str, listen: int) -> Part:
    path = directory / f"{name}.yaml"
    path.write_text(text)
    command = [envoy_program(), "-c", str(path), "--concurrency", "1", "--log-level", "warning",
               "--disable-hot-restart", "--drain-time-s", "5"]  # fmt: skip
    return Part(name, command, directory / f"{name}.log", {}, f"127.0.0.1:{listen}")


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Iterator[Ground]:
    directory = tmp_path_factory.mktemp("doctor")
    stack = Stack(directory / "data")
    started: list[Part] = []
    try:
        with running(stack, lambda _: None):
            first = stack.parts["envoy"].address.rpartition(":")[2]
            own = (stack.data_dir / "envoy.yaml").read_text()
            admin = stack.data_dir / "envoy-admin.sock"
            second = free_port()
            text = own.replace("xff_num_trusted_hops: 0", "xff_num_trusted_hops: 1")
            text = text.replace(f"port_value: {first}", f"port_value: {second}")
            text = text.replace("demo-envoy", "second").replace(str(admin), f"{directory}/2.sock")
            started.append(envoy_part(directory, "second", text, second))
            addresses = {(0, 0): f"127.0.0.1:{first}", (1, 0): f"127.0.0.1:{second}"}
            for hops, port in ((0, first), (1, second)):
                listen = free_port()
                front = PROXY.replace("LISTEN", str(listen)).replace("NEXT", str(port))
                front = front.replace("ADMIN", f"{directory}/front{hops}.sock")
                started.append(envoy_part(directory, f"front{hops}", front, listen))
                addresses[hops, 1] = f"127.0.0.1:{listen}"
            for part in started:
                part.start()
            for part in started:
                part.wait_until_up()
            token = directory / "token"
            token.write_text(stack.keys.token(PEOPLE["linden"]) + "\n")
            admins = {0: f"unix://{admin}", 1: f"unix://{directory}/2.sock"}
            yield Ground(stack, addresses, admins, token)
    finally:
        for part in started:
            part.stop()


def doctor(*arguments: object, **environment: str) -> tuple[int, dict]:
    """The exit code and the findings of a command; its output holds no token."""
    with world() as ours:
        ours.environment |= environment
        done = run([*AUTHZ, "doctor", "--json", *map(str, arguments)], ours)
    assert done.returncode in {0, 1, 3}, done.stderr
    assert "Bearer" not in done.stdout + done.stderr
    assert "eyJ" not in done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


def texts(told: dict, level: str) -> list[str]:
    return [
        f"{finding['seen']} | {finding['why']} | {finding['mend']}"
        for finding in told["findings"]
        if finding["level"] == level
    ]


EXPLAINED = {
    (0, 0): ("ok", ["where the request came from", "is 0, as it should be"]),
    (1, 1): ("ok", ["where the request came from", "is 1, as it should be"]),
    (1, 0): ("fail", ["too high; xff_num_trusted_hops is 1", "anyone can choose",
                      "set xff_num_trusted_hops: 0"]),
    (0, 1): ("fail", ["too low; xff_num_trusted_hops is 0", "all users look like one",
                      "set xff_num_trusted_hops to at least 1"]),
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize(("hops", "proxies"), EXPLAINED)
@pytest.mark.parametrize("authorized", [False, True])
def test_the_hop_count_is_explained(ground, hops, proxies, authorized):
    """With one proxy more or less than Envoy trusts, the record tells which, and the mend."""
    level, words = EXPLAINED[hops, proxies]
    arguments = ["--envoy", f"http://{ground.addresses[hops, proxies]}"]
    arguments += ["--envoy-admin", ground.admins[hops]]
    arguments += ["--token-file", ground.token] if authorized else []
    code, told = doctor(*arguments, AUTHZ_STORE=ground.stack.store)
    hits = [text for text in texts(told, level) if words[0] in text]
    assert len(hits) == 1, told
    assert all(word in hits[0] for word in words), hits
    assert code == (0 if level == "ok" else 1), told


def test_an_address_that_is_translated(ground):
    """Where this host has another address outside, the one given is the right one."""
    url = f"http://{ground.addresses[0, 1]}"
    arguments = ("--envoy", url, "--client-address", "127.0.0.1")
    code, told = doctor(*arguments, AUTHZ_STORE=ground.stack.store)
    assert (code, told["ok"]) == (0, 1), told


def test_an_envoy_that_records_nowhere(ground):
    """A request whose record does not come is no verdict: exit 3, and what to look at."""
    address = ground.addresses[0, 0]
    code, told = doctor("--envoy", f"http://{address}", "--wait", 0, AUTHZ_STORE=ground.stack.store)
    assert code == 3
    [text] = texts(told, "unknown")
    assert "additional_request_headers_to_log" in text


def test_the_demo_is_well(ground):
    """All of it at once, on a stack as we ship it: nothing to mend."""
    stack = ground.stack
    metrics = stack.parts["ext-authz"].command[-1]
    with world() as ours:
        ours.environment["AUTHZ_STORE"] = stack.store
        command = [*AUTHZ, "doctor", "--envoy-config", stack.data_dir / "envoy.yaml",
                   "--envoy-admin", ground.admins[0], "--envoy", stack.envoy,
                   "--token-file", ground.token, "--metrics", metrics,
                   "--ext-authz", stack.parts["ext-authz"].address]  # fmt: skip
        done = run(command, ours)
    assert done.returncode == 0, done.stdout
    assert "connected to the receiver" in done.stdout
    assert "fail" not in done.stdout


def test_a_running_envoy_that_fails_open(ground, tmp_path):
    """The setting in force is found by the admin interface, and so is each request let through."""
    text = (ground.stack.data_dir / "envoy.yaml").read_text()
    listen, nobody = free_port(), free_port()
    first = ground.stack.parts["envoy"].address.rpartition(":")[2]
    ext_authz = ground.stack.parts["ext-authz"].address.rpartition(":")[2]
    text = text.replace("failure_mode_allow: false", "failureModeAllow: y")
    text = text.replace(f"port_value: {first}", f"port_value: {listen}")
    text = text.replace(f"port_value: {ext_authz}", f"port_value: {nobody}")
    text = text.replace(str(ground.stack.data_dir / "envoy-admin.sock"), f"{tmp_path}/a.sock")
    part = envoy_part(tmp_path, "open", text, listen)
    part.command[part.command.index("warning")] = "debug"
    del part.command[part.command.index("--drain-time-s") :]
    part.start()
    try:
        part.wait_until_up()
        with world() as ours:
            header = f"authorization: Bearer {ground.token.read_text().strip()}"
            command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", header]
            done = run([*command, f"http://127.0.0.1:{listen}/fhir/metadata"], ours)
        assert done.stdout == "200"  # nobody decided
        code, told = doctor("--envoy-admin", f"unix://{tmp_path}/a.sock")
    finally:
        part.stop()
    fails = " ".join(texts(told, "fail"))
    assert code == 1
    assert "failure_mode_allow is on" in fails
    assert "let through without an answer since Envoy started" in fails
    assert "Envoy drains for 600s" in " ".join(texts(told, "warn"))
    assert "log level is debug" in fails


@contextmanager
def ext_authz(directory: Path, **settings: str) -> Iterator[tuple[str, str]]:
    """A Check server alone: its address and that of its metrics."""
    address, metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    policy = directory / "policy"
    shutil.copytree(CHECKOUT / "deploy" / "opa", policy, dirs_exist_ok=True)
    command = [*AUTHZ, "serve", "ext-authz", "--listen", address, "--metrics", metrics,
               "--policy", str(policy),
               "--data-dir", str(directory / f"data{time.monotonic_ns()}")]  # fmt: skip
    environment = {
        **os.environ,
        **{f"AUTHZ_EXT_AUTHZ__{k.upper()}": v for k, v in settings.items()},
    }
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        part = Part("ext-authz", command, directory / "log", {}, address, process)
        part.wait_until_up()
        yield address, metrics
    finally:
        process.terminate()
        process.wait(30)


def test_a_dry_run_cannot_be_missed(tmp_path):
    """It is in the table, in a box of its own, and in the JSON by its name; exit code 1."""
    with ext_authz(tmp_path, dry_run="true") as (address, metrics), world() as ours:
        arguments = ("--ext-authz", address, "--metrics", metrics)
        code, told = doctor(*arguments)
        done = run([*AUTHZ, "doctor", *arguments], ours)
    assert (code, told["dry_run"]) == (1, True)
    assert any(text.startswith("DRY RUN") for text in texts(told, "warn"))
    assert any("not connected to the receiver" in text for text in texts(told, "warn"))
    assert done.returncode == 1
    assert "─ DRY RUN ─" in done.stdout


@pytest.mark.thorough
def test_a_policy_that_does_not_load(tmp_path):
    """A change that does not compile is a failure until it is mended, though decisions go on."""
    rego = tmp_path / "policy" / "roles.rego"
    with ext_authz(tmp_path) as (address, metrics):
        good = rego.read_text()
        arguments = ("--ext-authz", address, "--metrics", metrics)
        rego.write_text(f"{good}\nallow := := 3\n")

        def fails() -> list[str]:
            return texts(doctor(*arguments)[1], "fail")

        assert until(lambda: any("cannot be read" in text for text in fails()), 20)
        rego.write_text(good)
        assert until(lambda: not fails(), 20)
    told = [json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines()]
    assert told.count("policy not loaded; the last good one stays") == 1
    assert told.count("the policy is read again") == 1


@pytest.mark.thorough
def test_what_was_not_looked_at_is_said(tmp_path):
    """Without the metrics, nobody is told that this is no dry run."""
    with ext_authz(tmp_path) as (address, _):
        code, told = doctor("--ext-authz", address)
    assert (code, told["ok"]) == (1, 1)
    assert "dry run" in texts(told, "warn")[0]
    code, told = doctor("--ext-authz", address)
    assert told["unknown"] == 1


@pytest.mark.thorough
@pytest.mark.parametrize(("days", "level"), [(90, "ok"), (10, "warn"), (-1, "fail")])
def test_certificates_that_end(tmp_path, days, level):
    """A served certificate's last day is read even when it is over, by mutual TLS."""
    authority = Certificates(tmp_path)
    cert, key = authority.issue("127.0.0.1", days=days, file="server")
    client, client_key = authority.issue("doctor", days=90, file="client")
    tls = {"tls_cert": str(cert), "tls_key": str(key), "tls_client_ca": str(authority.ca_file)}
    with ext_authz(tmp_path, **tls) as (address, metrics):
        _, told = doctor(
            "--ext-authz", address, "--metrics", metrics, "--tls-ca", authority.ca_file,
            "--tls-cert", client, "--tls-key", client_key,
        )  # fmt: skip
    served = [finding for finding in told["findings"] if "its certificate" in finding["part"]]
    assert [finding["level"] for finding in served] == [level], told
    health = [text for text in texts(told, "ok") if text.startswith("serving")]
    assert bool(health) == (days > 0)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to look at"),
        (["--envoy-config", "/nowhere.yaml"], "No such file"),
        (["--envoy", "http://127.0.0.1:1"], "--store is missing"),
        (["--envoy-admin", "nonsense"], "--envoy-admin: want"),
        (["--ext-authz", "127.0.0.1:1", "--tls-cert", "/a"], "together"),
        (["--metrics", "unix:///a"], "--metrics: want"),
    ],
)
def test_usage(arguments, words):
    """What is asked wrongly is exit code 2, and one line."""
    with world() as ours:
        done = run([*AUTHZ, "doctor", *arguments], ours)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_nobody_there():
    """What does not answer is exit code 3."""
    nobody = "127.0.0.1:1"
    arguments = ("--envoy-admin", nobody, "--metrics", nobody, "--envoy", f"http://{nobody}")
    code, told = doctor(*arguments, AUTHZ_STORE="clickhouse://127.0.0.1:1/x")
    assert (code, told["unknown"]) == (3, 3)
    assert len(told["findings"]) == 3


@contextmanager
def opa_of(wanted):
    """The address of an OPA with our policies, where one is wanted."""
    if not wanted:
        yield ""
        return
    with opa_process.running(load(CHECKOUT / "deploy" / "opa")) as url:
        yield url


@pytest.mark.thorough
def test_the_documented_commands(ground, tmp_path):
    """Each command of docs/operating.md, with this stack's addresses, finds nothing to mend; the
    embedded ClickHouse's administrator sees no rights of others."""
    page = (CHECKOUT / "docs" / "operating.md").read_text()
    lines = re.findall(r"^authz doctor .*$", page.replace("\\\n", ""), re.MULTILINE)
    assert len(lines) == 7
    parts = ground.stack.parts
    (tmp_path / "authz.yaml").write_text("ext_authz: {timeout_ms: 250}\n")
    here = {
        "/run/authz/envoy.yaml": str(ground.stack.data_dir / "envoy.yaml"),
        "unix:///run/authz/envoy-admin.sock": ground.admins[0],
        "http://fhir.example:8080": ground.stack.envoy,
        "/run/authz/token": str(ground.token),
        "127.0.0.1:9191": parts["ext-authz"].address,
        "127.0.0.1:9292": parts["receiver"].address,
        "127.0.0.1:9464": parts["ext-authz"].command[-1],
    }
    for line in lines:
        words = [here.get(word, word) for word in line.split()[1:]]
        with world() as place, opa_of("--opa" in words) as url:
            words = [url if word == "http://127.0.0.1:8181" else word for word in words]
            place.environment["AUTHZ_STORE"] = ground.stack.store
            done = run([*AUTHZ, *words], place, cwd=tmp_path)
        database = "--clickhouse" in words
        assert done.returncode == (3 if database else 0), (line, done.stdout, done.stderr)
        assert ("administrator's" in done.stdout) == database
