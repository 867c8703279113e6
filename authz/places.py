"""Where addresses are, by a file of the operator's, and which of them many people share."""

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import maxminddb

from authz.errors import UsageError

_REMEMBERED = 1 << 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where an address is: degrees, and the radius in km within which that is so."""

    latitude: float
    longitude: float
    radius: float
    country: str = ""


def locator(path: Path) -> Callable[[str], Place | None]:
    """Looks addresses up in a file of MaxMind's format that tells places (GeoLite2-City and the
    like). Raises `UsageError`."""
    entry = _entries(path)

    @lru_cache(_REMEMBERED)
    def place(address: str) -> Place | None:
        found = entry(address)
        location = _named(found, "location")
        latitude, longitude = location.get("latitude"), location.get("longitude")
        radius = location.get("accuracy_radius", 0)
        if not all(isinstance(one, int | float) for one in (latitude, longitude, radius)):
            return None
        return Place(float(latitude), float(longitude), float(radius), _country(found))  # type: ignore[arg-type]

    return place


def countries(path: Path | None) -> Callable[[str], str]:
    """Tells the country of an address (ISO 3166-1, two letters), by a file of MaxMind's format;
    empty where that has none, or there is no file. Raises `UsageError`."""
    if path is None:
        return nowhere
    entry = _entries(path)

    @lru_cache(_REMEMBERED)
    def country(address: str) -> str:
        return _country(entry(address))

    return country


def nowhere(_address: str) -> str:
    """The country where no file tells any."""
    return ""


def _entries(path: Path) -> Callable[[str], dict[str, object]]:
    """What the file has of an address; never fails."""
    try:
        reader = maxminddb.open_database(path, maxminddb.MODE_MMAP)
    except OSError as error:
        raise UsageError(f"geo: {path}: {error.strerror}") from None
    except maxminddb.InvalidDatabaseError:
        raise UsageError(f"geo: {path}: not a database in MaxMind's format") from None

    def entry(address: str) -> dict[str, object]:
        try:
            found = reader.get(address)
        except (ValueError, maxminddb.InvalidDatabaseError):
            return {}  # no address, or one of IPv6 in a database of IPv4; or a file that is broken
        return found if isinstance(found, dict) else {}

    return entry


def _country(found: dict[str, object]) -> str:
    code = _named(found, "country").get("iso_code", "")
    return code if isinstance(code, str) else ""


def _named(found: dict[str, object], name: str) -> dict[str, object]:
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def shared(ranges: Sequence[str]) -> Callable[[str], bool]:
    """Tells addresses in `ranges` (CIDR). Raises `UsageError`."""
    networks = []
    for text in ranges:
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise UsageError(
                f"watch.shared: {text}: want a network such as 198.51.100.0/24"
            ) from None

    @lru_cache(_REMEMBERED)
    def is_shared(address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in networks)

    return is_shared
