"""Where addresses are, by a database that another program wrote."""

from pathlib import Path

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from authz.errors import UsageError
from authz.places import Place, countries, locator
from authz.receiver.access import access_record
from authz.record.resource import Resources


@pytest.fixture
def database(tmp_path: Path) -> Path:
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True)
    city = {"latitude": 59.9, "longitude": 10.7, "accuracy_radius": 20}
    writer.insert_network(
        IPSet(["198.51.100.0/24"]), {"country": {"iso_code": "NO"}, "location": city}
    )
    writer.insert_network(IPSet(["2001:db8::/32"]), {"country": {"iso_code": "SE"}})
    writer.insert_network(IPSet(["192.0.2.0/24"]), {"country": "not as it should be"})
    path = tmp_path / "places.mmdb"
    writer.to_db_file(str(path))
    return path


@pytest.mark.parametrize(
    ("address", "country"),
    [
        ("198.51.100.7", "NO"), ("2001:db8::1", "SE"), ("192.0.2.1", ""), ("203.0.113.1", ""),
        ("", ""), ("pipe", ""),
    ],
)  # fmt: skip
def test_countries(database: Path, address: str, country: str) -> None:
    """Of each address that is known; a database of countries has them too."""
    assert countries(database)(address) == country
    assert countries(None)(address) == ""


def test_places(database: Path) -> None:
    """Only where a point is known."""
    place = locator(database)
    assert place("198.51.100.7") == Place(59.9, 10.7, 20, "NO")
    assert place("2001:db8::1") is None


def test_an_access_says_its_country(database: Path) -> None:
    """By the address that Envoy saw; nothing where it is not known."""
    known = "sidecar", Resources((), ()), None, countries(database)
    for address, country in (("198.51.100.7", "NO"), ("203.0.113.1", None)):
        record = access_record({"source_ip": address}, *known)
        assert record.get("country") == country


def test_no_database(tmp_path: Path) -> None:
    """A file that is none, or is not there, is named."""
    (tmp_path / "text").write_text("?")
    for name in ("text", "none"):
        for ask in (countries, locator):
            with pytest.raises(UsageError, match=rf"geo: .*{name}: "):
                ask(tmp_path / name)


def test_a_broken_database(database: Path) -> None:
    """Nothing is known by it, and nobody is refused for it."""
    data = bytearray(database.read_bytes())
    for place in range(len(data) - 400, len(data) - 250):
        data[place] ^= 0xFF
    database.write_bytes(data)
    try:
        country = countries(database)
    except UsageError:
        return
    assert country("198.51.100.7") in ("", "NO")
