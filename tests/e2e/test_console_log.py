"""`authz serve console`: logs over HTTP, as C2SP tlog-tiles has them."""

import gzip
import http.client
import json
import os
import signal
import socket
import ssl
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from certificates import Certificates
from logs import SIGNER
from programs import AUTHZ, free_port, listens, run, until, world
from relay import Relay
from served import console, fill, record, token_file

from authz.ledger import Checkpoint, Place, Signer, Tree, leaf_hash, open_note
from authz.ledger.tiles import ENTRIES, unpack, width_at
from authz.store.client import connect

SIZES = (1, 255, 44, 300)
SIZE = sum(SIZES)
OTHER = Signer("test/other", bytes(32))


def batches():
    numbers = iter(range(SIZE))
    return [[record(next(numbers)) for _ in range(size)] for size in SIZES]


@pytest.fixture(scope="module")
def site(clickhouse, tmp_path_factory):
    """A console for entries' token holders: (its part, the leaves, the token, the store)."""
    directory = tmp_path_factory.mktemp("console")
    with connect(clickhouse.store) as admin:
        admin.execute("CREATE DATABASE console")
        store = clickhouse.store.rpartition("/")[0] + "/console"
        leaves = fill(directory, store, batches())
        path, token = token_file(directory)
        environment = {"AUTHZ_CONSOLE__ENTRIES_TOKEN_FILE": str(path)}
        options = ["--metrics", f"127.0.0.1:{free_port()}"]
        with console(directory, store, options, environment) as part:
            yield part, leaves, token, store
        admin.execute("DROP DATABASE console")


def get(address, path, method="GET", **headers):
    """Status, headers and body."""
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def test_checkpoint(site):
    """The newest checkpoint, signed by the log, with and without the log's name in the path."""
    part, leaves, _, _ = site
    for path in (f"/{SIGNER.name}/checkpoint", "/checkpoint"):
        status, headers, body = get(part.address, path)
        assert status == 200
        assert headers["content-type"] == "text/plain; charset=utf-8"
        assert headers["cache-control"] == "max-age=1"
        checkpoint = Checkpoint.parse(open_note(body.decode(), [SIGNER.verifier])[0])
        tree = Tree()
        tree.append(map(leaf_hash, leaves))
        assert checkpoint == Checkpoint(SIGNER.name, SIZE, tree.root())


def test_tiles(site):
    """Each tile is the definition's, at every width that the log ever had; there is none beyond."""
    part, leaves, _, _ = site
    tree = Tree()
    tiles = tree.append(map(leaf_hash, leaves)) + tree.partial_tiles()
    assert len(tiles) == 4
    for tile in tiles:
        width = len(tile.hashes)
        for narrower in {1, width // 2, width - 1, width} - {0}:
            place = Place(tile.level, tile.index, narrower)
            status, headers, body = get(part.address, f"/{SIGNER.name}/{place.path}")
            assert (status, body) == (200, tile.data[: narrower * 32]), place
            assert headers["content-type"] == "application/octet-stream"
            assert headers["cache-control"] == "public, max-age=31536000, immutable"
        for more in {width + 1, 256} if width < 256 else ():
            place = Place(tile.level, tile.index, more)
            assert get(part.address, f"/{place.path}")[0] == 404
    for place in (Place(0, 3, 1), Place(1, 1, 1), Place(2, 0, 1), Place(63, 0), Place(0, 10**15)):
        assert get(part.address, f"/{place.path}")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/", "/tile/", "/tile/0", "/tile/0/0", "/tile/0/000.p/0", "/tile/00/000", "/tile/0/000/",
        "/tile/entries", "/tile/0/..%2f000", "/unknown/log/checkpoint", "/unknown/tile/0/000",
        "/test/receiver", "/test/receiver/tile/0/000?x=/../..", "/checkpoint/", "//checkpoint",
        "/%00/checkpoint", "/%ff/checkpoint", "/test/receiver/tile/-1/000", "/'/checkpoint",
    ],
)  # fmt: skip
def test_no_such_thing(site, path):
    """What is no tile, log or checkpoint is not there; nothing of it is a bug."""
    status, headers, _ = get(site[0].address, path)
    assert status == (200 if "?" in path else 404)
    assert headers["cache-control" if status == 200 else "date"]


def test_only_reading(site):
    """Nothing can be changed."""
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert get(site[0].address, "/checkpoint", method)[0] == 405
    assert get(site[0].address, "/checkpoint", "HEAD")[::2] == (200, b"")


def test_entries(site):
    """Whoever shows the token gets the leaves, as they were hashed; packed, if they wish."""
    part, leaves, token, _ = site
    got = []
    for index in range(3):
        place = Place(ENTRIES, index, width_at(ENTRIES, index, SIZE))
        path = f"/{SIGNER.name}/{place.path}"
        status, headers, body = get(part.address, path, **bearer(token))
        assert status == 200
        assert headers["cache-control"] == "private, max-age=31536000, immutable"
        got += unpack(body)
        wish = {"accept-encoding": "gzip", **bearer(token)}
        status, headers, packed = get(part.address, path, **wish)
        assert headers["content-encoding"] == "gzip"
        assert gzip.decompress(packed) == body
    assert got == leaves
    assert get(part.address, "/tile/entries/000.p/3", **bearer(token))[2] < body
    assert get(part.address, "/tile/entries/003.p/1", **bearer(token))[0] == 404


def test_entries_are_not_for_everybody(site, tmp_path):
    """Without the token nothing is told, not even which entries there are; where no token is set,
    nobody has it."""
    part, _, token, store = site
    wrong = [{}, bearer(""), bearer(token[:-1]), bearer(token + "0"), bearer("\u00e9"),
             {"authorization": token}, {"authorization": f"Basic {token}"}]  # fmt: skip
    for headers in wrong:
        for path in ("/tile/entries/000", "/tile/entries/999", "/test/receiver/tile/entries/000"):
            encoded = {name: value.encode() for name, value in headers.items()}
            status, told, body = get(part.address, path, **encoded)
            assert (status, told["www-authenticate"]) == (401, "Bearer")
            assert body == b"want the token\n"
    assert token not in part.log.read_text()
    with console(tmp_path, store) as closed:
        for headers in ({}, bearer(token), bearer("")):
            assert get(closed.address, "/tile/entries/000", **headers)[0] == 403
        assert get(closed.address, "/checkpoint")[0] == 200


def test_what_people_run_it_by(site):
    """It is healthy, its metrics count what it answered, and its log is JSON."""
    part = site[0]
    metrics = part.command[part.command.index("--metrics") + 1]
    assert get(part.address, "/healthz")[::2] == (200, b"ok\n")
    for what in ("checkpoint", "tile/0/000"):
        assert get(part.address, f"/{SIGNER.name}/{what}")[0] == 200
    text = get(metrics, "/metrics")[2].decode()
    assert 'authz_console_requests_total{status="200",what="checkpoint"}' in text
    assert 'authz_console_seconds_count{what="tile"}' in text
    lines = [json.loads(line) for line in part.told()]
    assert lines[0]["message"] == "console is up"
    assert all({"level", "time", "message"} <= set(line) for line in lines)


@pytest.mark.thorough
def test_what_is_not_as_it_should_be(database, tmp_path):
    """An entry that no bundle takes, one that is gone, one that is there twice, and a tile that is
    missing: each is refused, and what an operator must see is in the log."""
    fill(tmp_path, database, [[record(n) for n in range(256)], [record(256), record(7)]])
    path, token = token_file(tmp_path)
    environment = {"AUTHZ_CONSOLE__ENTRIES_TOKEN_FILE": str(path)}

    def entries(place):
        return get(part.address, f"/{SIGNER.name}/tile/entries/{place}", **bearer(token))

    with (
        console(tmp_path, database, environment=environment) as part,
        connect(database, mutations_sync=1) as client,
    ):
        assert entries("000")[0] == 200
        # What is sealed fits; somebody has changed this one.
        client.execute(
            "ALTER TABLE audit_log UPDATE details = repeat('x', 65536) WHERE index = 256"
        )
        status, _, body = entries("001.p/2")
        assert (status, body) == (500, b"an entry is too large for its bundle\n")
        assert "an entry of 65" in part.told()[-1]
        copy = "INSERT INTO audit_log SELECT * {} FROM audit_log WHERE index = 9"
        client.execute(copy.format(""))
        assert entries("000")[0] == 200, "an identical double is harmless"
        client.execute(copy.format("REPLACE ('m.birch' AS subject)"))
        assert entries("000")[0] == 500
        assert "claim one place" in part.told()[-1]
        client.execute("ALTER TABLE audit_log DELETE WHERE index = 9")
        assert entries("000")[0] == 404
        client.execute("ALTER TABLE tiles DELETE WHERE level = 0 AND index = 0")
        assert get(part.address, "/tile/0/000")[0] == 500
        assert "a tile is missing" in part.told()[-1]
        assert get(part.address, "/tile/0/001.p/2")[0] == 200
        path.write_text("short")
        assert entries("000")[0] == 403, "a token that cannot be read is nobody's"


@pytest.mark.thorough
def test_two_logs(database, tmp_path):
    """With two logs the path must say which; with none there is nothing."""
    for number, signer in enumerate((None, SIGNER, OTHER)):
        (tmp_path / str(number)).mkdir()
        fill(
            tmp_path / str(number), database, [[record(number)]] if signer else [], signer or OTHER
        )
        with console(tmp_path, database) as part:
            paths = ("/checkpoint", f"/{SIGNER.name}/checkpoint", f"/{OTHER.name}/tile/0/000.p/1")
            answers = [get(part.address, path)[0] for path in paths]
        assert answers == [[404, 404, 404], [200, 200, 404], [404, 200, 200]][number]


def test_a_witnessed_checkpoint_is_preferred(database, tmp_path):
    """Of two notes over one tree, the one with more signatures is given out."""
    fill(tmp_path, database, [[record(1)]])
    with console(tmp_path, database) as part, connect(database) as client:
        plain = get(part.address, "/checkpoint")[2].decode()
        both = plain + "\N{EM DASH} witness AAAAAAAA\n"
        row = [(SIGNER.name, 1, both)]
        client.execute("INSERT INTO checkpoints (origin, size, note) VALUES", row)
        assert get(part.address, "/checkpoint")[2].decode() == both


def test_while_the_store_is_away(tmp_path):
    """It starts, says that it is not healthy, answers 503, and tells why in its log."""
    away = f"clickhouse://a:secret@127.0.0.1:{free_port()}/x"
    with console(tmp_path, away) as part:
        for path in ("/healthz", "/checkpoint", "/a/tile/0/000"):
            assert get(part.address, path)[0] == 503
        assert "does not answer" in part.told()[-1]
        assert "secret" not in part.log.read_text()


class Slow(Relay):
    """Passes nothing on until it may."""

    def __init__(self, target):
        self.asked, self.may = threading.Event(), threading.Event()
        super().__init__(target)

    def _join(self, near):
        self.asked.set()
        self.may.wait(30)
        super()._join(near)


def test_a_clean_stop(site, tmp_path):
    """SIGTERM ends it with 0, once what was asked before is answered."""
    address = site[3].rpartition("@")[2].partition("/")[0]
    slow = Slow(address)
    with (
        console(tmp_path, site[3].replace(address, slow.address)) as part,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(get, part.address, "/checkpoint")
        assert slow.asked.wait(30)
        os.kill(part.process.pid, signal.SIGTERM)
        assert until(lambda: not listens(int(part.address.rpartition(":")[2])), 10)
        assert not asked.done()
        slow.may.set()
        assert asked.result(30)[0] == 200
        assert part.process.wait(30) == 0
        assert json.loads(part.told()[-1])["message"] == "console stopped"
    slow.close()


@pytest.mark.thorough
def test_tls_and_unix_sockets(site, tmp_path):
    """It speaks TLS where it has a certificate, and listens on a unix socket."""
    certificates = Certificates(tmp_path)
    cert, key = certificates.issue("127.0.0.1")
    environment = {"AUTHZ_CONSOLE__TLS_CERT": str(cert), "AUTHZ_CONSOLE__TLS_KEY": str(key)}
    with console(tmp_path, site[3], environment=environment) as part:
        context = ssl.create_default_context(cafile=certificates.ca_file)
        with closing(http.client.HTTPSConnection(part.address, context=context)) as connection:
            connection.request("GET", "/checkpoint")
            assert connection.getresponse().status == 200
    path = tmp_path / "socket"
    with console(tmp_path, site[3], environment={"AUTHZ_CONSOLE__PLAINTEXT": "true"}) as part:
        part.stop()
        part.command[part.command.index("--listen") + 1] = f"unix://{path}"
        part.start()
        assert until(path.exists, 30)
        with socket.socket(socket.AF_UNIX) as ours:
            assert until(lambda: ours.connect_ex(str(path)) == 0, 10)
            ours.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert ours.makefile("rb").read().startswith(b"HTTP/1.1 200")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "environment", "says"),
    [
        (["--listen", "0.0.0.0:1234"], {}, "there is no TLS"),
        (["--listen", "127.0.0.1:1"], {"AUTHZ_CONSOLE__TLS_CERT": "x"}, "needed together"),
        ([], {"AUTHZ_CONSOLE__ENTRIES_TOKEN_FILE": "/nowhere"}, "entries_token_file /nowhere"),
        ([], {"AUTHZ_STORE": "http://x"}, "--store: want"),
        (["--listen", "nowhere.invalid:80"], {"AUTHZ_CONSOLE__PLAINTEXT": "1"}, "choose another"),
    ],
)
def test_what_it_does_not_start_with(options, environment, says):
    """What an operator can mend is one line, and the exit code is 2."""
    with world() as ours:
        ours.environment |= {"AUTHZ_STORE": "clickhouse://a:b@127.0.0.1:1/x", **environment}
        done = run([*AUTHZ, "serve", "console", *options], ours)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.thorough
def test_a_token_that_others_read(tmp_path):
    """A token that others may read, or that could be guessed, is refused at the start."""
    for mode, text, says in ((0o644, "x" * 64, "chmod 600"), (0o600, "short", "openssl rand")):
        path = tmp_path / f"{mode:o}"
        path.write_text(text)
        path.chmod(mode)
        with world() as ours:
            ours.environment["AUTHZ_STORE"] = "clickhouse://a:b@127.0.0.1:1/x"
            ours.environment["AUTHZ_CONSOLE__ENTRIES_TOKEN_FILE"] = str(path)
            done = run([sys.executable, "-m", "authz", "serve", "console"], ours)
        assert done.returncode == 2
        assert says in done.stderr
