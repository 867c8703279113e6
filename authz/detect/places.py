"""Where addresses are, by a file of the operator's, and which of them many people share."""

import ipaddress
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import maxminddb

from authz.detect.usual import Place
from authz.errors import UsageError

_REMEMBERED = 1 << 16


def locator(path: Path) -> Callable[[str], Place | None]:
    """Looks addresses up in a file of MaxMind's format that tells places (GeoLite2-City and the
    like). Raises `UsageError`."""
    try:
        reader = maxminddb.open_database(path, maxminddb.MODE_MMAP)
    except OSError as error:
        raise UsageError(f"watch.geo: {path}: {error.strerror}") from None
    except maxminddb.InvalidDatabaseError:
        raise UsageError(f"watch.geo: {path}: not a database in MaxMind's format") from None

    @lru_cache(_REMEMBERED)
    def place(address: str) -> Place | None:
        try:
            found = reader.get(address)
        except ValueError:  # no address, or one of IPv6 in a database of IPv4
            return None
        if not isinstance(found, dict):
            return None
        country = _named(found, "country").get("iso_code", "")
        location = _named(found, "location")
        latitude, longitude = location.get("latitude"), location.get("longitude")
        radius = location.get("accuracy_radius", 0)
        if not all(isinstance(one, int | float) for one in (latitude, longitude, radius)):
            return None
        return Place(float(latitude), float(longitude), float(radius), str(country))  # type: ignore[arg-type]

    return place


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
