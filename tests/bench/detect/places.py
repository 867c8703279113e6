"""Where requests come from: networks, what is known of them, addresses, and browsers.

Outside the hospital, the addresses are of blocks that nobody routes; inside they are private ones,
of which no geolocation knows a country.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final, NamedTuple

import numpy as np
from numpy.random import Generator

from tests.bench.detect.options import Options
from tests.bench.detect.population import CLINIC, OFFICE, SERVICE, Departments, Ints, People


class Network(NamedTuple):
    cidr: str
    kind: str  # campus, vpn, isp, mobile, hotel, hosting
    country: str
    latitude: float
    longitude: float
    radius_km: int
    asn: int
    organization: str


_COUNTRIES: Final = (
    ("US", 41.88, -87.63), ("CA", 43.65, -79.38), ("GB", 51.51, -0.13), ("DE", 52.52, 13.40),
    ("FR", 48.86, 2.35), ("ES", 41.39, 2.17), ("NL", 52.37, 4.90), ("JP", 35.68, 139.69),
    ("BR", -23.55, -46.63), ("IN", 19.08, 72.88), ("RO", 44.43, 26.10), ("VN", 10.82, 106.63),
    ("NG", 6.52, 3.38),
)  # fmt: skip
COUNTRIES: Final = len(_COUNTRIES)

_HOME_TOWNS: Final = ((41.88, -87.63), (41.76, -88.31), (42.05, -87.69), (42.26, -89.09))

NETWORKS: Final = (
    Network("10.1.0.0/16", "campus", "", 0, 0, 0, 0, "main building"),
    Network("10.2.0.0/16", "campus", "", 0, 0, 0, 0, "clinics"),
    Network("10.3.0.0/16", "campus", "", 0, 0, 0, 0, "offices"),
    Network("26.10.0.0/28", "vpn", "US", 41.88, -87.63, 20, 64601, "hospital VPN, Chicago"),
    Network("26.10.1.0/28", "vpn", "US", 39.04, -77.49, 20, 64601, "hospital VPN, Ashburn"),
    Network("26.10.2.0/28", "vpn", "CA", 43.65, -79.38, 20, 64601, "hospital VPN, Toronto"),
    *(
        Network(f"28.{16 * n}.0.0/14", "isp", "US", *town, 50, 64610 + n, f"cable {n + 1}")
        for n, town in enumerate(_HOME_TOWNS)
    ),
    Network("29.1.0.0/26", "mobile", "US", 41.88, -87.63, 200, 64620, "carrier 1, NAT"),
    Network("29.2.0.0/26", "mobile", "US", 39.10, -94.58, 500, 64621, "carrier 2, NAT"),
    Network("30.0.0.0/20", "hosting", "US", 33.45, -112.07, 50, 64630, "hosting 1"),
    *(
        Network(f"33.{n}.0.0/18", "hotel", *where, 50, 64640 + n, f"hotels {where[0]}")
        for n, where in enumerate(_COUNTRIES)
    ),
    *(
        Network(f"33.{n}.128.0/18", "hosting", *where, 100, 64660 + n, f"hosting {where[0]}")
        for n, where in enumerate(_COUNTRIES)
    ),
)
_VPN, _ISP, _MOBILE, _HOSTING = 3, 6, 10, 12
_HOTELS, _FOREIGN = 13, 13 + COUNTRIES
_FIRST: Final = np.array([int(IPv4Network(each.cidr)[0]) for each in NETWORKS])
_SIZE: Final = np.array([IPv4Network(each.cidr).num_addresses for each in NETWORKS])

CAMPUS, VPN, HOME, MOBILE, ABROAD = range(5)

_WINDOWS, _APPLE = "Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10_15_7"
_CHROME = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{v}.0.0.0 Safari/537.36"
_FAMILIES: Final = (
    f"Mozilla/5.0 ({_WINDOWS}) {_CHROME}",
    f"Mozilla/5.0 ({_WINDOWS}) {_CHROME} Edg/{{v}}.0.0.0",
    f"Mozilla/5.0 ({_APPLE}) {_CHROME}",
    "Mozilla/5.0 (X11; Linux x86_64; rv:{v}.0) Gecko/20100101 Firefox/{v}.0",
    f"Mozilla/5.0 ({_APPLE}) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/{{v}} Safari/605.1",
    "Chart/{v} (iOS)",
    "Chart/{v} (Android)",
    "python-requests/2.{v}",
    "feed-engine/{v}",
)
_VERSIONS: Final = 8
AGENTS: Final = [text.format(v=142 + n) for text in _FAMILIES for n in range(_VERSIONS)]
_SCRIPT, _ENGINE = 7, 8


@dataclass(frozen=True)
class From:
    """Where requests come from: address, network (a number in `NETWORKS`), browser."""

    ip: Ints
    network: Ints
    agent: Ints

    def take(self, which: Ints) -> "From":
        return From(self.ip[which], self.network[which], self.agent[which])


class Places:
    """What each person usually works with, and at."""

    def __init__(self, options: Options, people: People, departments: Departments) -> None:
        random = options.random(6)
        count = options.people
        kind = departments.kind
        members = np.bincount(people.department, minlength=len(kind))
        self._department = people.department
        self._campus = np.where(kind == OFFICE, 2, np.where(kind == CLINIC, 1, 0))
        self._stations = np.clip(members // 2, 2, 230)  # more people than desks
        self._desk = random.integers(self._stations[people.department])
        self._isp = _ISP + random.integers(4, size=count)
        self._home = random.integers(_SIZE[_ISP] - 40, size=count)
        self._lease = random.integers(40, size=count)
        self._laptop = random.choice(5, count, p=(0.45, 0.2, 0.15, 0.05, 0.15))
        self._phone = random.integers(5, 7, count)
        self._lag = random.integers(0, 20, count)
        self._hides = np.where(random.random(count) < 0.01, random.choice((0.2, 0.9), count), 0.0)
        self._service = people.role == SERVICE

    def desk(self, random: Generator, who: Ints, day: int) -> From:
        """Mostly the usual one of the department's, else one that is free."""
        department = self._department[who]
        usual = (random.random(len(who)) < 0.7) | self._service[who]
        desk = np.where(usual, self._desk[who], random.integers(self._stations[department]))
        seen = self._station(day, department, desk)
        seen.agent[self._service[who]] = _ENGINE * _VERSIONS
        return seen

    def elsewhere(self, random: Generator, day: int, department: Ints) -> From:
        """Any desk of these departments."""
        return self._station(day, department, random.integers(self._stations[department]))

    def _station(self, day: int, department: Ints, desk: Ints) -> From:
        network = self._campus[department]
        ip = _FIRST[network] + 16 + department * 256 + desk
        # Departments have one of two browsers, and get new ones at different times.
        return From(ip, network, _agent(department % 3 // 2, day + department * 3 % 20))

    def vpn(self, random: Generator, who: Ints, day: int) -> From:
        """One of few addresses that many share; some of them are in another country."""
        network = _VPN + random.choice(3, len(who), p=(0.7, 0.22, 0.08))
        return From(_FIRST[network] + random.integers(1, 7, len(who)), network, self._own(who, day))

    def home(self, random: Generator, who: Ints, day: int) -> From:
        """Their provider's address, which changes every few weeks. A few have a VPN of their own
        that seems to be abroad, which some of them always use."""
        ip = _FIRST[self._isp[who]] + self._home[who] + (day + self._lease[who]) // 25
        hidden = random.random(len(who)) < self._hides[who]
        exit_ = _FOREIGN + 1 + (self._home[who] + (random.random(len(who)) < 0.3)) % (COUNTRIES - 1)
        network = np.where(hidden, exit_, self._isp[who])
        ip = np.where(hidden, _FIRST[network] + random.integers(1, 900, len(who)), ip)
        return From(ip, network, self._own(who, day))

    def mobile(self, random: Generator, who: Ints, day: int) -> From:
        network = _MOBILE + self._lag[who] % 2
        ip = _FIRST[network] + random.integers(2, 60, len(who))
        return From(ip, network, _agent(self._phone[who], day + self._lag[who]))

    def hotel(self, who: Ints, day: int, country: Ints) -> From:
        network = _HOTELS + country
        ip = _FIRST[network] + (self._home[who] * 7 + day // 9) % _SIZE[network]
        return From(ip, network, self._own(who, day))

    def thief(self, random: Generator, who: Ints, day: int, *, near: bool) -> From:
        """Somebody else, somewhere else; `near`: in the same country."""
        country = int(random.integers(1, COUNTRIES))
        network = _HOSTING if near else int(random.choice((_HOTELS, _FOREIGN))) + country
        family = self._laptop[who[:1]] if random.random() < 0.3 else random.choice((0, 2, 3, 7), 1)
        agent = _agent(family, np.array([day + int(random.integers(20))]))
        ip = _FIRST[network] + int(random.integers(_SIZE[network]))
        size = len(who)
        return From(np.full(size, ip), np.full(size, network), np.full(size, agent[0]))

    def script(self, seen: From, which: Ints) -> None:
        """Some of these requests come from a script."""
        seen.agent[which] = _SCRIPT * _VERSIONS + self._lag[0] % _VERSIONS

    def _own(self, who: Ints, day: int) -> Ints:
        return _agent(self._laptop[who], day + self._lag[who])


def _agent(family: Ints, age: Ints) -> Ints:
    """The number of a browser in `AGENTS`: a new version every few weeks."""
    return np.asarray(family * _VERSIONS + np.minimum(age // 25, _VERSIONS - 1))


def address(ip: int) -> str:
    return str(IPv4Address(ip))
