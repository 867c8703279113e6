"""Envoy's bootstrap as `authz envoy-config` fills it: TLS where a hop leaves the host, and new
certificates without a restart."""

import asyncio
import shutil
import socket
import ssl
from pathlib import Path

import aiohttp
import pytest
import yaml
from certificates import Certificates
from pages import FUNCTION, block
from programs import run, world
from sidecar import Sidecar, sidecar
from test_envoy_bootstrap import values
from typer.testing import CliRunner

from authz.cli import program
from authz.envoy.transport import secrets, secure
from authz.errors import UsageError

NETWORK = {"LISTEN_ADDRESS": "0.0.0.0", "RECEIVER_HOST": "receiver-0.receiver.authz.svc"}


def made(directory: Path, *options: str, **changed: str) -> dict[str, object]:
    """The bootstrap that the command writes. Raises `UsageError`."""
    environment = {name: str(value) for name, value in (values(directory) | changed).items()}
    path = directory / "envoy.yaml"
    command = ["envoy-config", "-o", str(path), *options]
    done = CliRunner().invoke(program(), command, env=environment)
    if isinstance(done.exception, UsageError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return yaml.safe_load(path.read_text())


def sockets(document: object) -> dict[str, object]:
    """The hops that have TLS, each with its settings."""
    resources = document["static_resources"]
    found = {each["name"]: each for each in resources["clusters"]}
    found["listener"] = resources["listeners"][0]["filter_chains"][0]
    return {
        name: each["transport_socket"]["typed_config"]
        for name, each in found.items()
        if "transport_socket" in each
    }


def test_what_stays_on_the_host(tmp_path):
    """On loopback nothing needs a certificate."""
    assert sockets(made(tmp_path, RECEIVER_HOST="127.0.0.1")) == {}


def test_what_leaves_the_host(tmp_path):
    """A hop that others can reach gets TLS: a cluster believes the name it asked for, and no other
    of the same authority."""
    found = sockets(made(tmp_path, "--tls", str(tmp_path), **NETWORK))
    assert set(found) == {"listener", "receiver"}
    context = found["receiver"]["common_tls_context"]["combined_validation_context"]
    [name] = context["default_validation_context"]["match_typed_subject_alt_names"]
    assert name == {"san_type": "DNS", "matcher": {"exact": NETWORK["RECEIVER_HOST"]}}
    assert found["receiver"]["sni"] == NETWORK["RECEIVER_HOST"]
    assert found["listener"]["require_client_certificate"] is False


def test_plain_text_must_be_said(tmp_path):
    """Without certificates the command ends, and names the hops; plain text is for who asks."""
    with pytest.raises(UsageError, match="reach these: listener, receiver; give --tls DIR"):
        made(tmp_path, **NETWORK)
    found = made(tmp_path, "--tls", str(tmp_path), "--plaintext", "listener", **NETWORK)
    assert set(sockets(found)) == {"receiver"}
    found = made(tmp_path, ENVOY_PLAINTEXT="listener receiver", **NETWORK)
    assert sockets(found) == {}
    with pytest.raises(UsageError, match="the listener has no TLS"):
        made(tmp_path, "--client-certificates", RECEIVER_HOST="127.0.0.1")


def test_wrong_values(tmp_path):
    """A value that is missing, or a template that cannot be read, is named."""
    with pytest.raises(UsageError, match="LISTEN_PORT is empty"):
        made(tmp_path, LISTEN_PORT="")
    with pytest.raises(UsageError, match=r"--template .*none.yaml: No such file"):
        made(tmp_path, "--template", str(tmp_path / "none.yaml"))


class Mounted:
    """A secret as Kubernetes mounts it: what it is made of changes as one, by a link."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "mounted"
        self.directory.mkdir()
        self._issued = directory / "issued"
        self._issued.mkdir()
        self.authority = Certificates(self._issued)
        self._number = 0

    def replace(self) -> None:
        cert, key = self.authority.issue("localhost")
        self._number += 1
        version = self.directory / f"..{self._number}"
        version.mkdir()
        files = {"tls.crt": cert, "tls.key": key, "ca.crt": self.authority.ca_file}
        for name, source in files.items():
            shutil.copy(source, version / name)
            if self._number == 1:
                (self.directory / name).symlink_to(Path("..data") / name)
        (self.directory / "..fresh").symlink_to(version.name)
        (self.directory / "..fresh").replace(self.directory / "..data")

    def client(self, *, shown: bool) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.authority.ca_file)
        if shown:
            context.load_cert_chain(*self.authority.issue("client"))
        return context


async def certificate(ours: Sidecar, context: ssl.SSLContext) -> bytes:
    """What a new connection is shown."""
    _, writer = await asyncio.open_connection(
        "localhost", ours.ports["listen"], ssl=context, family=socket.AF_INET
    )
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return shown


def test_a_listener_with_tls(tmp_path):
    """Envoy answers who shows a certificate of the authority, and nobody else; when the secret is
    replaced, new connections get the new certificate within seconds."""

    async def run() -> None:
        mounted = Mounted(tmp_path)
        mounted.replace()
        for name, text in secrets(mounted.directory).items():
            (tmp_path / name).write_text(text)

        def edit(document: dict[str, object]) -> None:
            secure(document, {"listener": "127.0.0.1"}, tmp_path, client_certificates=True)

        context = mounted.client(shown=True)
        async with sidecar(tmp_path, edit) as ours:
            url = ours.url.replace("http://127.0.0.1", "https://localhost") + "/answer"
            headers = ours.headers("one")
            assert await status(url, context, headers) == 200
            with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                await status(url, mounted.client(shown=False), headers)
            before = await certificate(ours, context)
            mounted.replace()
            async with asyncio.timeout(20):
                while await certificate(ours, context) == before:
                    await asyncio.sleep(0.1)

    asyncio.run(run())


async def status(url: str, context: ssl.SSLContext, headers: dict[str, str]) -> int:
    connector = aiohttp.TCPConnector(ssl=context, family=socket.AF_INET)
    async with (
        aiohttp.ClientSession(connector=connector) as client,
        client.get(url, headers=headers) as response,
    ):
        return response.status


def test_the_documented_command(tmp_path):
    """It takes the values out of the environment's file, and gives TLS to what leaves the host."""
    told = [f"{name}={value}\n" for name, value in (values(tmp_path) | NETWORK).items()]
    (tmp_path / "envoy.env").write_text("".join(told))
    text = block("docs/operating.md", "set -a;").replace("/etc/authz/envoy", f"{tmp_path}/envoy")
    text = text.replace("/run/authz", str(tmp_path)).replace("/etc/authz/tls", str(tmp_path))
    with world() as ours:
        done = run(["sh", "-eu", "-c", FUNCTION + text], ours)
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load((tmp_path / "envoy.yaml").read_text())
    assert set(sockets(found)) == {"listener", "receiver"}


def test_the_directory_is_the_files_own(tmp_path, monkeypatch):
    """Envoy finds the small files wherever it is started from."""
    monkeypatch.chdir(tmp_path)
    found = sockets(made(tmp_path, "--tls", ".", **NETWORK))
    [reference] = found["listener"]["common_tls_context"]["tls_certificate_sds_secret_configs"]
    path = reference["sds_config"]["path_config_source"]["path"]
    assert Path(path).is_absolute()
    assert str(tmp_path.resolve() / "tls.crt") in Path(path).read_text()
