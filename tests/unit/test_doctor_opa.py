"""`authz doctor --opa` on a real OPA: ready, deciding, its bundles signed, and not open to all."""

import json
import socket
import subprocess

import httpx2 as httpx
import pytest
from programs import CHECKOUT, free_port, until
from typer.testing import CliRunner

from authz.cli import program
from authz.doctor import Level
from authz.doctor.opa import check
from authz.errors import UnavailableError
from authz.policy.opa import OpaOptions

QUERY = "envoy/authz/allow"
CAREFUL = "package envoy.authz\n\nimport rego.v1\n\ndefault allow := false\n"
TOKEN = "s3cret-of-nobody"
AUTHORIZED = f"""package system.authz

import rego.v1

default allow := false

allow if input.identity == "{TOKEN}"
"""


@pytest.fixture
def served(opa, tmp_path):
    """Starts an OPA with modules; returns its URL."""
    started = []

    def serve(*modules, host="127.0.0.1", options=(), config=None):
        folder = tmp_path / str(len(started))
        folder.mkdir()
        for number, text in enumerate(modules):
            (folder / f"{number}.rego").write_text(text)
        arguments = [*options]
        if config:
            (tmp_path / "opa.json").write_text(json.dumps(config))
            arguments += ["--config-file", str(tmp_path / "opa.json")]
        port = free_port()
        command = [opa, "run", "--server", "--addr", f"{host}:{port}", *arguments, str(folder)]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        url = f"http://{host}:{port}"

        def answers():
            try:
                return httpx.get(f"{url}/health").status_code
            except httpx.TransportError:
                return None

        until(answers, 10)
        return url

    yield serve
    for process in started:
        process.kill()
        process.wait()


def found(url, query=QUERY, **options):
    """What is seen, by level."""
    told = {level: [] for level in Level}
    for one in check(OpaOptions(url, **options), query):
        told[one.level].append(one.seen)
    return told


def test_all_is_well(served):
    """An OPA that is ready and has the decision, also one that is undefined where nothing is known,
    or an object."""
    for module in (
        CAREFUL,
        "package envoy.authz\n\nimport rego.v1\n\nallow if input.parsed_path[0] == 'x'\n".replace(
            "'", '"'
        ),
        'package envoy.authz\n\nallow := {"allowed": false, "http_status": 403}\n',
    ):
        told = found(served(module))
        assert told.pop(Level.OK) == [
            "OPA is ready",
            f"it decides at {QUERY}, and allows no empty request",
        ]
        assert not any(told.values())


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("package envoy.authz\n\nallow := true\n", "allows a request of which nothing is known"),
        ('package envoy.authz\n\nallow := {"allowed": true}\n', "of which nothing is known"),
        ('package envoy.authz\n\nallow := "yes"\n', "is no decision"),
        ("package other\n\nallow := false\n", "its policy has no package envoy.authz"),
    ],
)
def test_what_it_decides(served, module, said):
    """What lets an empty request through, is no decision, or is not there."""
    told = found(served(module))
    [seen] = told[Level.FAIL]
    assert said in seen


def test_the_library(served):
    """The policies that we ship let nothing empty through."""
    told = found(served((CHECKOUT / "deploy" / "opa" / "decision.rego").read_text(), *[
        file.read_text() for file in sorted((CHECKOUT / "deploy" / "opa").glob("*.rego"))
        if not file.name.endswith("_test.rego") and file.name != "decision.rego"
    ]))  # fmt: skip
    assert not told[Level.FAIL]
    assert len(told[Level.OK]) == 2


@pytest.mark.parametrize("signed", [True, False])
def test_a_bundle(served, signed):
    """One that cannot be got, and that must be signed or need not be."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    bundle = {"service": "s", "resource": "b.tar.gz"}
    url = served(config={
        "services": {"s": {"url": nowhere}},
        "keys": {"authz": {"algorithm": "HS256", "key": TOKEN}},
        "bundles": {"authz": bundle | ({"signing": {"keyid": "authz"}} if signed else {})},
    })  # fmt: skip
    told = found(url)
    assert told[Level.FAIL][0] == "OPA is not ready (its /health answers 500)"
    told_of_bundle = told[Level.OK] if signed else told[Level.WARN]
    assert told_of_bundle == [f"its bundle authz {'must' if signed else 'need not'} be signed"]


def test_open_to_strangers(served):
    """At an address that others reach, its API must ask for a token; with a token we are let in."""
    address = socket.gethostbyname(socket.gethostname())
    if address.startswith("127."):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            address = probe.getsockname()[0]
    told = found(served(CAREFUL, host=address))
    assert told[Level.WARN] == ["its API answers whoever reaches it"]
    guarded = ("--authentication=token", "--authorization=basic")
    url = served(CAREFUL, AUTHORIZED, host=address, options=guarded)
    told = found(url, token=TOKEN)
    assert told[Level.OK][-1] == "its API asks who asks"
    assert not told[Level.WARN] + told[Level.FAIL]
    assert found(url, token="other")[Level.FAIL] == ["OPA does not answer us (401)"]


def test_nobody_there():
    with pytest.raises(UnavailableError, match="does not answer"):
        found(f"http://127.0.0.1:{free_port()}")


def test_the_command(served, tmp_path):
    """By its address, or by the configuration beside --metrics; what is no server is refused."""
    url = served("package envoy.authz\n\nallow := true\n")
    run = CliRunner().invoke
    done = run(program(), ["doctor", "--opa", url, "--json"])
    told = json.loads(done.stdout)
    assert (done.exit_code, told["fail"]) == (1, 1)
    (tmp_path / "authz.yaml").write_text(f"ext_authz: {{policy: '{url}'}}\n")
    arguments = ["--config", str(tmp_path / "authz.yaml"), "--metrics", "127.0.0.1:1", "--json"]
    told = json.loads(run(program(), ["doctor", *arguments]).stdout)
    assert [one["part"] for one in told["findings"] if one["level"] == "fail"] == [url]
    done = run(program(), ["doctor", "--opa", "/a/policy"])
    assert isinstance(done.exception, Exception)
    assert "want http(s)://host:port or unix:///path" in str(done.exception)
