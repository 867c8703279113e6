"""`authz doctor` on a running Envoy whose runtime opens it, on certificates in use, on a receiver,
and on clocks that differ."""

import json
import os
import shutil
import struct
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from certificates import Certificates
from programs import AUTHZ, CHECKOUT, free_port, listens, run, until, world

from authz.demo.stack import envoy_program
from authz.store import embedded

KINDS = "type.googleapis.com/envoy.extensions"
ALL = {"numerator": 100, "denominator": "HUNDRED"}


def doctor(*arguments: object, **environment: str) -> tuple[int, list[dict[str, str]]]:
    """The exit code, and what is not well."""
    with world() as ours:
        ours.environment |= environment
        done = run([*AUTHZ, "doctor", "--json", *map(str, arguments)], ours)
    assert done.returncode in {0, 1, 3}, done.stderr
    return done.returncode, json.loads(done.stdout)["findings"]


def wrong(found: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(one["level"], one["seen"]) for one in found if one["level"] != "ok"}


def bootstrap(directory: Path, listen: int, admin: int) -> dict:
    """An Envoy over TLS whose ext_authz can be switched off, and with more that is wrong."""
    authority = Certificates(directory)
    cert, key = authority.issue("127.0.0.1", days=10, file="front")
    inline = {"certificate_chain": {"filename": str(cert)}, "private_key": {"filename": str(key)}}
    manager = {
        "@type": f"{KINDS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "http_filters": [
            {"name": "ext_authz", "typed_config": {
                "@type": f"{KINDS}.filters.http.ext_authz.v3.ExtAuthz",
                "grpc_service": {"envoy_grpc": {"cluster_name": "authz"}, "timeout": "0.25s"},
                "filter_enabled": {"default_value": ALL, "runtime_key": "authz.asked"},
                "deny_at_disable": {"default_value": True,
                                    "runtime_key": "authz.denies"},
                "failure_mode_allow_header_add": True,
            }},
            {"name": "late", "typed_config": {
                "@type": f"{KINDS}.filters.http.header_mutation.v3.HeaderMutation"}},
            {"name": "router", "typed_config": {
                "@type": f"{KINDS}.filters.http.router.v3.Router"}},
        ],
        "route_config": {"virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "authz"}}]}]},
    }  # fmt: skip
    nobody = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9}}}
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        "layered_runtime": {"layers": [
            {"name": "ours", "static_layer": {
                "envoy.reloadable_features.http_reject_path_with_fragment": False}},
            {"name": "hand", "admin_layer": {}},
        ]},
        "static_resources": {
            "listeners": [{
                "name": "front",
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": listen}},
                "filter_chains": [{
                    "transport_socket": {"name": "tls", "typed_config": {
                        "@type": f"{KINDS}.transport_sockets.tls.v3.DownstreamTlsContext",
                        "common_tls_context": {"tls_certificates": [inline]}}},
                    "filters": [{"name": "http", "typed_config": manager}],
                }],
            }],
            "clusters": [{
                "name": "authz", "type": "STATIC",
                "load_assignment": {"cluster_name": "authz", "endpoints": [
                    {"lb_endpoints": [{"endpoint": nobody}]}]},
            }],
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def envoy(tmp_path_factory) -> Iterator[tuple[int, int]]:
    """The ports of its listener and of its admin interface."""
    directory = tmp_path_factory.mktemp("envoy")
    listen, admin = free_port(), free_port()
    path = directory / "envoy.yaml"
    path.write_text(yaml.safe_dump(bootstrap(directory, listen, admin)))
    command = [envoy_program(), "-c", str(path), "--concurrency", "1", "--disable-hot-restart",
               "--log-level", "warning", "--drain-time-s", "5"]  # fmt: skip
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        assert until(lambda: listens(listen), 60), (directory / "log").read_text()
        yield listen, admin
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.thorough
def test_what_a_running_envoy_does_not_ask(envoy):
    """The runtime's values in force are looked at: those that switch ext_authz off, a default taken
    back, and what was set by hand; so are the filters' order and the certificate in use."""
    _, admin = envoy
    code, found = doctor("--envoy-admin", f"127.0.0.1:{admin}")
    told = wrong(found)
    assert code == 1
    feature = "envoy.reloadable_features.http_reject_path_with_fragment is off"
    assert ("fail", feature) in told
    assert any("failure_mode_allow_header_add is on" in seen for _, seen in told)
    assert any("header_mutation stands after ext_authz" in seen for _, seen in told)
    assert any(level == "warn" and "expires in 9 days" in seen for level, seen in told)
    assert not any("run time" in seen and "authz." in seen for _, seen in told)
    address = f"http://127.0.0.1:{admin}/runtime_modify?authz.asked=3&authz.denies=false"
    with urllib.request.urlopen(urllib.request.Request(address, method="POST"), timeout=10):
        pass
    _, found = doctor("--envoy-admin", f"127.0.0.1:{admin}")
    assert wrong(found) - told == {
        ("fail", "authz.asked is 3 % at run time: so many requests are asked about"),
        ("fail", "authz.denies is off at run time"),
        ("warn", "set by hand at run time: authz.asked, authz.denies"),
    }


def test_any_tls_listener(envoy):
    """The certificate that a listener shows to whoever comes."""
    code, [finding] = doctor("--tls-listener", f"127.0.0.1:{envoy[0]}")
    assert (code, finding["level"]) == (1, "warn")
    assert "expires in 9 days" in finding["seen"]
    code, [finding] = doctor("--tls-listener", f"127.0.0.1:{envoy[1]}")  # speaks no TLS
    assert (code, finding["level"]) == (3, "unknown")


def test_certificates_of_every_part(tmp_path):
    """Each certificate that the configuration names is looked at, whatever part it is for."""
    authority = Certificates(tmp_path)
    files = {}
    for part, days in (("console", -1), ("receiver", 10), ("ext_authz", 90)):
        cert, key = authority.issue("127.0.0.1", days=days, file=part)
        files[part] = {"tls_cert": str(cert), "tls_key": str(key)}
    (tmp_path / "authz.yaml").write_text(json.dumps(files))
    nobody = f"127.0.0.1:{free_port()}"
    _, found = doctor("--config", tmp_path / "authz.yaml", "--receiver", nobody)
    levels = {one["part"]: one["level"] for one in found if one["part"].endswith("tls_cert")}
    assert levels == {
        "ext_authz.tls_cert": "ok", "receiver.tls_cert": "warn", "console.tls_cert": "fail",
    }  # fmt: skip


@pytest.fixture(scope="module")
def receiver(tmp_path_factory) -> Iterator[tuple[str, str, embedded.Embedded]]:
    """A receiver's address, its metrics', and its database."""
    directory = tmp_path_factory.mktemp("receiver")
    listen, metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    server = embedded.start(directory / "clickhouse")
    with world() as ours:
        ours.environment["AUTHZ_RECEIVER__ENVOY_ADMINS"] = json.dumps(
            [f"http://127.0.0.1:{free_port()}"]
        )
        command = [*AUTHZ, "serve", "receiver", "--listen", listen, "--metrics", metrics,
                   "--store", server.store, "--data-dir", str(directory / "data")]  # fmt: skip
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(command, env=ours.environment, stderr=log)
        try:
            assert until(lambda: listens(int(listen.rpartition(":")[2])), 180), (
                directory / "log"
            ).read_text()
            yield listen, metrics, server
        finally:
            process.terminate()
            process.wait(30)
            server.stop()


@pytest.mark.thorough
def test_a_receiver(receiver):
    """That it takes records in, how full its journal is, and which Envoy does not answer it."""
    listen, metrics, _ = receiver

    def found() -> list[dict[str, str]]:
        return doctor("--receiver", listen, "--metrics", metrics)[1]

    assert until(lambda: any("does not answer the receiver" in one["seen"] for one in found()), 30)
    told = found()
    assert any(one["seen"] == "serving: it takes records in" for one in told)
    assert any("records are not stored yet" in one["seen"] for one in told)
    assert not any("clock" in one["seen"] for one in told)
    code, [finding] = doctor("--receiver", f"127.0.0.1:{free_port()}")
    assert (code, finding["level"]) == (3, "unknown")


@pytest.mark.thorough
@pytest.mark.parametrize(("seconds", "level"), [(-10, "warn"), (60, "fail")])
def test_a_clock_that_differs(receiver, tmp_path, seconds, level):
    """This machine's clock, the receiver's and ClickHouse's are held against each other."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, for a clock that is set")
    source, program = CHECKOUT / "tests" / "faults" / "soak" / "clock.c", tmp_path / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", program, source, "-ldl"], check=True)
    (tmp_path / "clock").write_bytes(struct.pack("<q", -seconds * 1_000_000_000))
    _, metrics, server = receiver
    _, found = doctor(
        "--metrics", metrics, "--clickhouse", AUTHZ_STORE=server.store,
        LD_PRELOAD=str(program), SOAK_CLOCK=str(tmp_path / "clock"), PATH=os.environ["PATH"],
    )  # fmt: skip
    told = [one for one in found if "its clock is" in one["seen"]]
    assert [one["level"] for one in told] == [level] * 2, found
    way = "ahead of" if seconds > 0 else "behind"
    assert all(f"s {way} this machine's" in one["seen"] for one in told)
    assert {one["part"].partition("/")[0] for one in told} == {
        metrics, server.store.rpartition("@")[2].partition("/")[0],
    }  # fmt: skip
