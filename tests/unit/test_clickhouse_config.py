"""The files of deploy/clickhouse/config.d, in servers that start with them."""

import contextlib
import re
import ssl
import subprocess
import xml.etree.ElementTree as ET
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

import pytest
from certificates import Certificates
from programs import free_port, listens, program, until
from relay import Relay
from rights import HERE, configured, shipped

from authz.errors import UsageError
from authz.store import embedded
from authz.store.client import QUERY_ERRORS, connect
from authz.store.migrations import migrate

FILES = sorted((HERE / "config.d").glob("*.xml")) + sorted((HERE / "users.d").glob("*.xml"))
TLS_DIRECTORY = "/etc/clickhouse-server/tls"
PORTS = ("9440", "8443", "9010")


@pytest.fixture(scope="module")
def issued(tmp_path_factory):
    """An authority, and what it has issued to a server."""
    directory = tmp_path_factory.mktemp("tls")
    made = Certificates(directory)
    made.issue("127.0.0.1", file="server")
    return directory, made


def root(file):
    return ET.parse(file).getroot()  # noqa: S314 - our own


def test_files_are_read():
    """Each is an XML file of ClickHouse's, and stands on its own."""
    for file in FILES:
        assert root(file).tag == "clickhouse", file


def test_a_server_has_what_the_files_say(tmp_path):
    """Room is left on the disk, logs are kept so long and no others are, backups have one place."""
    home = tmp_path / "clickhouse"
    for file in ("access.xml", "storage.xml", "logs.xml"):
        shipped(home, file)
    shipped(home, "backups.xml", {"/var/lib/clickhouse-backups": str(tmp_path / "backups")})
    server = embedded.start(home)
    try:
        with connect(server.store) as client:
            assert client.execute(
                "SELECT name, keep_free_space FROM system.disks ORDER BY name"
            ) == [("backups", 0), ("default", 1 << 30)]
            client.execute("SYSTEM FLUSH LOGS")
            kept = client.execute(
                "SELECT name, extract(engine_full, 'TTL event_date \\\\+ (\\\\w+\\\\(\\\\d+\\\\))')"
                " FROM system.tables WHERE database = 'system' AND engine LIKE '%MergeTree'"
                " ORDER BY name"
            )
            assert kept == [
                ("part_log", "toIntervalDay(90)"), ("query_log", "toIntervalDay(30)"),
                ("session_log", "toIntervalYear(6)"),
            ]  # fmt: skip
            for place in ("File('elsewhere')", "Disk('default', 'elsewhere')"):
                with pytest.raises(QUERY_ERRORS, match="allowed"):
                    client.execute(f"BACKUP DATABASE authz TO {place}")
    finally:
        server.stop()


@contextlib.contextmanager
def old_server(directory, made):
    """Debian's ClickHouse, which is too old for the schema and has the TLS that the wheel's engine
    lacks, with tls.xml: the ports in the order of PORTS, and that in plain text which it closes."""
    clickhouse = program("clickhouse-server", "clickhouse-server")
    ports = [str(free_port()) for _ in PORTS]
    plain = free_port()
    text = (HERE / "config.d" / "tls.xml").read_text().replace(TLS_DIRECTORY, str(made[0]))
    for old, new in zip(PORTS, ports, strict=True):
        text = text.replace(old, new)
    (directory / "config.d").mkdir(parents=True)
    (directory / "config.d" / "tls.xml").write_text(text.replace("clickhouse>", "yandex>"))
    (directory / "config.xml").write_text(
        f"<yandex><listen_host>127.0.0.1</listen_host><tcp_port>{plain}</tcp_port>"
        f"<http_port>{plain}</http_port><path>{directory}/data/</path>"
        f"<tmp_path>{directory}/tmp/</tmp_path><users_config>users.xml</users_config>"
        "<mark_cache_size>1000000</mark_cache_size><logger><console>1</console></logger></yandex>"
    )
    (directory / "users.xml").write_text(
        "<yandex><profiles><default/></profiles><quotas><default/></quotas><users><reader>"
        "<password>secret</password><networks><ip>127.0.0.1</ip></networks>"
        "<profile>default</profile><quota>default</quota></reader></users></yandex>"
    )
    with (directory / "log").open("wb") as log:
        command = [clickhouse, f"--config-file={directory / 'config.xml'}"]
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
    try:
        up = until(lambda: listens(int(ports[0])) or process.poll() is not None, 60)
        assert up
        assert process.poll() is None, (directory / "log").read_text()[-2000:]
        yield ports, plain
    finally:
        process.terminate()
        process.wait(60)


def test_tls(tmp_path, issued):
    """Nobody gets as far as a password without a certificate of the authority; a server without
    one is not spoken to; nothing listens in plain text."""
    _, made = issued
    certificate, key = made.issue("receiver", file="receiver")
    (tmp_path / "other").mkdir()
    other = Certificates(tmp_path / "other")
    stranger = dict(zip(("certfile", "keyfile"), other.issue("receiver"), strict=True))
    own = {"certfile": certificate, "keyfile": key}
    with old_server(tmp_path / "server", issued) as ((native, https, _), plain):

        def asked(**given):
            url = f"clickhouse://reader:secret@127.0.0.1:{native}/default?{urlencode(given)}"
            with connect(url) as client:
                client.settings.clear()  # which that old server does not all know
                with pytest.raises(UsageError, match=r"too old .* 26\.2 or later"):
                    migrate(client)
                return client.execute("SELECT 1")

        secure = {"secure": "true", "ca_certs": made.ca_file}
        assert asked(**secure, **own) == [(1,)]
        refused = [
            secure, secure | stranger, {"secure": "true", "ca_certs": other.ca_file} | own, {},
        ]  # fmt: skip
        for given in refused:
            with pytest.raises(QUERY_ERRORS):
                asked(**given)
        context = ssl.create_default_context(cafile=made.ca_file)
        with pytest.raises(OSError, match=r"CERTIFICATE_REQUIRED|reset|EOF"):
            urlopen(f"https://127.0.0.1:{https}/ping", context=context, timeout=10)
        context.load_cert_chain(certificate, key)
        with urlopen(f"https://127.0.0.1:{https}/ping", context=context, timeout=10) as answer:
            assert answer.read() == b"Ok.\n"
        assert not listens(plain)


class Terminated(Relay):
    """Speaks TLS to who connects, and asks for a certificate."""

    def __init__(self, target, directory):
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(directory / "server.pem", directory / "server.key")
        self._context.load_verify_locations(directory / "ca.pem")
        self._context.verify_mode = ssl.CERT_REQUIRED
        super().__init__(target)

    def _join(self, near):
        with contextlib.suppress(OSError):
            super()._join(self._context.wrap_socket(near, server_side=True))


def test_a_cluster_over_tls(tmp_path, issued, monkeypatch):
    """The servers find each other by cluster.xml, with the certificates of tls.xml, and a query
    goes on by the secret; a server with another authority's certificates reaches none."""
    directory, _ = issued
    monkeypatch.setenv("AUTHZ_SHARD", "1")
    monkeypatch.setenv("AUTHZ_REPLICA", "a")
    monkeypatch.setenv("AUTHZ_CLUSTER_SECRET", "between servers")
    far_port = free_port()
    relay = Terminated(f"127.0.0.1:{far_port}", directory)
    hosts = {f"ch-{shard}-{replica}": "127.0.0.1" for shard in (1, 2) for replica in (1, 2, 3)}
    hosts["9440"] = str(urlsplit(f"//{relay.address}").port)
    (tmp_path / "other").mkdir()
    Certificates(tmp_path / "other").issue("127.0.0.1", file="server")
    found = {}
    for name, place, port in (
        ("far", directory, far_port), ("near", directory, 0), ("other", tmp_path / "other", 0),
    ):  # fmt: skip
        home = tmp_path / f"server-{name}"
        shipped(home, "cluster.xml", hosts)
        text = (HERE / "config.d" / "tls.xml").read_text()
        tls = re.search("<openSSL>.*</openSSL>", text, re.DOTALL)
        configured(home, tls=tls[0].replace(TLS_DIRECTORY, str(place)))
        found[name] = embedded.start(home, tcp=port)
    try:
        query = "SELECT count(), uniqExact(_shard_num) FROM cluster('authz', system.one)"
        with connect(found["near"].store) as client:
            assert client.execute("SELECT * FROM system.macros ORDER BY 1") == [
                ("replica", "a"), ("shard", "1"),
            ]  # fmt: skip
            shards = "SELECT shard_num, count() FROM system.clusters GROUP BY 1 ORDER BY 1"
            assert client.execute(shards) == [(1, 3), (2, 3)]
            assert client.execute(query) == [(2, 2)]
        with connect(found["other"].store) as client, pytest.raises(QUERY_ERRORS):
            client.execute(query)
    finally:
        for server in found.values():
            server.process.kill()
            server.stop()
        relay.close()


def test_keepers_are_the_clusters():
    """keeper.xml's servers are those that cluster.xml asks. No Keeper can be started here."""
    keeper = root(HERE / "config.d" / "keeper.xml").find("keeper_server")
    asked = root(HERE / "config.d" / "cluster.xml").find("zookeeper")
    named = [(one.findtext("id"), one.findtext("hostname")) for one in keeper.iter("server")]
    assert named == [("1", "keeper-1"), ("2", "keeper-2"), ("3", "keeper-3")]
    assert [node.findtext("host") for node in asked] == [host for _, host in named]
    assert {node.findtext("port") for node in asked} == {keeper.findtext("tcp_port_secure")}
