"""Where feeds come from: directories, files, and an HTTP server with pages."""

import contextlib
import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from authz.errors import AuthzError, UnavailableError, UsageError
from authz.feeds.fhir import Reader
from authz.feeds.source import Source, is_address, mapping
from authz.feeds.tables import Names
from authz.feeds.web import Web
from authz.record.privacy import PrivacyKey

KEY = PrivacyKey.of(bytes(range(32)))


def source(given, only=None, **web):
    given = str(given)
    asking = Web(given, **web) if is_address(given) else None
    return Source(given, Names(KEY), Reader(), only, asking)


def read(given, only=None, **web):
    """The rows by feed, and what the source told of."""
    ours = source(given, only, **web)
    by_feed = {}
    for feed, row in ours.read():
        by_feed.setdefault(feed, []).append(row)
    return by_feed, ours.told


def team(patient, person="dr.alder"):
    return {
        "resourceType": "CareTeam", "subject": {"reference": f"Patient/{patient}"},
        "participant": [{"member": {"reference": f"Practitioner/{person}"}}],
    }  # fmt: skip


def bundle(*resources, following=None):
    entries = [{"resource": one} for one in resources]
    links = [{"relation": "self", "url": "x"}]
    links += [{"relation": "next", "url": following}] if following else []
    return {"resourceType": "Bundle", "type": "searchset", "entry": entries, "link": links}


class Server:
    """Answers with what `pages` has for a path and its query: a status, headers, a body."""

    def __init__(self):
        self.pages = {}
        self.asked = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append((self.path, dict(self.headers)))
                status, headers, body = outer.pages.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    if value:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def json(self, path, document, status=200, **headers):
        body = json.dumps(document, indent=1).encode()
        self.pages[path] = status, {"Content-Type": "application/fhir+json", **headers}, body


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_a_directory(tmp_path):
    """Each file that is there is a feed; patients are tokens, names are marks that are the same
    for the same name, and a token stays what it is."""
    (tmp_path / "people.csv").write_text(
        "subject,department,surname,household,status,patient\n dr.alder ,ward 3,Reed,H 1,Left,p-1\n"
    )
    (tmp_path / "patients.csv").write_text(
        f"patient,surname,household,vip\n{KEY.token('p-1')},REED,h 1,yes\np-2,reed ,,\n"
    )
    (tmp_path / "census.csv").write_text(
        "department,patient,from,until\nward 3,p-2,2026-03-01,9999-12-31\n"
    )
    (tmp_path / "notes.csv").write_text("x\n")
    found, told = read(tmp_path)
    assert set(found) == set(told) == {"people", "patients", "census"}
    [(subject, _, department, surname, household, own, status, _)] = found["people"]
    assert (subject, department, own, status) == ("dr.alder", "ward 3", KEY.token("p-1"), "left")
    first, second = found["patients"]
    assert first == (KEY.token("p-1"), surname, household, True)
    assert second == (KEY.token("p-2"), surname, "", False)
    assert len({surname, household, KEY.token("reed").partition(".")[2]}) == 3
    assert found["census"][0][:4] == ("", "ward 3", KEY.token("p-2"), "census")
    assert "p-2" not in str(found)
    assert "reed" not in str(found).lower()
    assert set(read(tmp_path, "people")[0]) == {"people"}
    with pytest.raises(UsageError, match=r"there is no orders\.csv"):
        read(tmp_path, "orders")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("subject,patient,from\nn.reed,p-77,p-77\n", "line 2: from is no time in ISO 8601"),
        ("subject,patient\nn.reed,\n", "line 2: patient is empty"),
        ("subject,patient\nn.reed,  \n", "line 2: patient is empty"),
        (f"subject,patient\n\nn.reed,0123abcd.{'a' * 22}\n", "line 3: .*another privacy"),
        ("who,patient\nn.reed,p-77\n", "no column subject"),
    ],
)  # fmt: skip
def test_wrong_csv(tmp_path, text, told):
    """The file, the line and the column are named, and no patient is."""
    path = tmp_path / "orders.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=told) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "p-77" not in str(caught.value)


def test_a_file_must_say_what_it_is(tmp_path):
    """By its name or by --feed."""
    path = tmp_path / "export-7.csv"
    path.write_text("subject,patient\nn.reed,p\n")
    with pytest.raises(UsageError, match="which feed is it"):
        read(path)
    assert set(read(path, "orders")[0]) == {"orders"}


def test_fhir_files(tmp_path):
    """A Bundle, however it is laid out, and NDJSON of resources and Bundles say the same."""
    resources = [team("p-1"), {"resourceType": "Patient", "id": "p-1"}, team("p-2", "dr.elm")]
    forms = {
        "bundle.json": json.dumps(bundle(*resources), indent=2),
        "line.json": json.dumps(bundle(*resources)),
        "each.ndjson": "\n".join(json.dumps(one) for one in resources),
        "both.ndjson": f"{json.dumps(resources[0])}\n\n{json.dumps(bundle(*resources[1:]))}\n",
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        found, told = read(tmp_path / name)
        rows = found["care_team"]
        assert [row[:3] for row in rows] == [
            ("dr.alder", "", KEY.token("p-1")), ("dr.elm", "", KEY.token("p-2"))
        ], name  # fmt: skip
        assert told == {"care_team": str(tmp_path / name)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"resourceType": "CareTeam"}\n{"p-77"\n', "line 2: want a FHIR resource in JSON"),
        ('{"p-77":\n', "line 1: want a FHIR resource in JSON"),
        ('["p-77"]', "line 1: want a FHIR resource in JSON"),
        ('{"p-77": 1}', "with its resourceType"),
        ('{"resourceType": "Bundle", "entry": {"p-77": 1}}', r"Bundle\.entry: want an array"),
        ('{"resourceType": "Bundle", "entry": ["p-77"]}', r"Bundle\.entry\[0\]: want an object"),
        ('{"resourceType": "OperationOutcome", "text": "p-77"}', "an OperationOutcome"),
        (json.dumps(bundle(team("p-77") | {"period": {"start": "p-77"}})),
         r"line 1: Bundle\.entry\[0\]: CareTeam\.period\.start: no FHIR dateTime"),
        ('{"resourceType": "Patient", "id": "p-77"}', "nothing in it is of a feed"),
        ("", "nothing in it is of a feed"),
    ],
)  # fmt: skip
def test_wrong_fhir(tmp_path, text, told):
    """The file, the line or the resource are named, and no patient is."""
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(AuthzError, match=told) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "p-77" not in str(caught.value)


def test_an_empty_search_empties_a_feed_that_is_named(tmp_path):
    """Nothing is emptied by accident."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps(bundle()))
    assert read(path, "appointments") == ({}, {"appointments": str(path)})


def test_pages(server):
    """All pages of a search are read, with the token, from one host; what is named of it holds no
    query."""
    server.json("/fhir/CareTeam?x=s", bundle(team("p-1"), following=f"{server.url}/fhir?page=2"))
    server.json("/fhir?page=2", bundle(team("p-2"), following="/fhir?page=3"))
    server.json("/fhir?page=3", bundle(team("p-3")))
    found, told = read(f"{server.url}/fhir/CareTeam?x=s")
    assert [row[2] for row in found["care_team"]] == [KEY.token(f"p-{n}") for n in (1, 2, 3)]
    assert told == {"care_team": f"{server.url}/fhir/CareTeam"}


def test_csv_and_ndjson_over_http(server):
    """What the server says it is, or what its name ends with, is how it is read."""
    csv = b"subject,patient\nn.reed,p-1\n"
    server.pages["/a?t=1"] = 200, {"Content-Type": "text/csv; charset=utf-8"}, csv
    server.pages["/orders.csv"] = 200, {"Content-Type": "application/octet-stream"}, csv
    lines = b"\n".join(json.dumps(team(f"p-{n}")).encode() for n in range(3))
    server.pages["/bulk"] = 200, {"Content-Type": "application/fhir+ndjson"}, lines
    assert set(read(f"{server.url}/a?t=1", "orders")[0]) == {"orders"}
    assert set(read(f"{server.url}/orders.csv")[0]) == {"orders"}
    assert len(read(f"{server.url}/bulk")[0]["care_team"]) == 3


def test_token(server, tmp_path):
    """It is sent, and never shown; a file that others may read is refused."""
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    path.chmod(0o600)
    server.json("/x", bundle(team("p-1")))
    read(f"{server.url}/x", token=path)
    assert server.asked[-1][1]["Authorization"] == "Bearer s3cret"
    server.json("/x?secret=s3cret", {}, 401)
    with pytest.raises(UnavailableError, match="HTTP 401; does its --token still hold") as caught:
        read(f"{server.url}/x?secret=s3cret", token=path)
    assert "s3cret" not in str(caught.value)
    path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        read(f"{server.url}/x", token=path)


def test_nothing_leads_elsewhere(server):
    """No redirection and no link takes the token, or us, to another host; a circle ends."""
    other = Server()
    try:
        server.json("/away", {}, 302, Location=f"{other.url}/x")
        server.json("/link", bundle(team("p-1"), following=f"{other.url}/x"))
        server.json("/circle", bundle(team("p-1"), following="/circle"))
        for path, told in (("away", "HTTP 302"), ("link", "another host"), ("circle", "circle")):
            with pytest.raises(AuthzError, match=told):
                read(f"{server.url}/{path}")
        assert other.asked == []
    finally:
        other.server.shutdown()
        other.server.server_close()


@pytest.mark.parametrize("kind", ["text/csv", "application/fhir+ndjson", "application/fhir+json"])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_an_answer_that_is_cut_off(server, kind, framing):
    """Half a table is no table: whatever the answer is, and however it tells its length."""
    text = "subject,patient\n" + "n.reed,p-1\n" * 50
    if "json" in kind:
        text = "".join(json.dumps(team(f"p-{n}")) + "\n" for n in range(50))
    body, headers = text.encode(), {"Content-Type": kind, "Connection": "close"}
    headers["Content-Length"] = str(len(body) + 100) if framing == "length" else ""
    if framing == "chunked":
        headers["Transfer-Encoding"] = "chunked"
        body = f"{len(body):x}\r\n".encode() + body + b"\r\n64\r\n"
    server.pages["/x"] = 200, headers, body
    with pytest.raises(UnavailableError):
        read(f"{server.url}/x", "care_team")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://fhir.example/CareTeam", "--plaintext"),
        ("https://user:pass@fhir.example/CareTeam", "--token"),
        ("https:///CareTeam", "want https://HOST/PATH"),
    ],
)
def test_addresses_that_are_not_asked(url, told):
    """Credentials do not travel in clear, nor in an address."""
    with pytest.raises(UsageError, match=told) as caught:
        read(url)
    assert "pass" not in str(caught.value).replace("password", "")


def test_nobody_answers():
    """A server that is away is named, and nothing of the query is."""
    with pytest.raises(UnavailableError, match=r"^http://127\.0\.0\.1:1/x: Connection refused$"):
        read("http://127.0.0.1:1/x?secret=1")


def test_tables_of_practitioners(tmp_path):
    """Two columns; a row that lacks one is named."""
    path = tmp_path / "practitioners.csv"
    path.write_text("practitioner,subject,more\nPractitioner/7, dr.alder ,x\n")
    assert mapping(path, "practitioner", "subject") == {"Practitioner/7": "dr.alder"}
    path.write_text("practitioner,subject\n7,\n")
    with pytest.raises(UsageError, match="line 2: subject is empty"):
        mapping(path, "practitioner", "subject")


def test_long_sources_are_read_as_they_come(tmp_path):
    """The first rows are there before the last are read."""
    path = tmp_path / "orders.csv"
    path.write_text("subject,patient\n" + "n.reed,p\n" * 100_000 + "n.reed,\n")
    with contextlib.closing(source(path).read()) as rows:
        assert len(list(itertools.islice(rows, 10))) == 10
