"""The feeds as `authz watch --feeds` reads them: CSV, times in ISO 8601, UTC."""

import csv
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmdb_writer import MMDBWriter
from netaddr import IPSet

from tests.bench.detect.care import APPOINTMENTS, CARE_TEAM, ORDERS
from tests.bench.detect.places import NETWORKS, Network
from tests.bench.detect.population import ROLES, STATUSES
from tests.bench.detect.traffic import Hall

_FILES = ((CARE_TEAM, "care_team"), (APPOINTMENTS, "appointments"), (ORDERS, "orders"))


def write_feeds(hall: Hall, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    names, tokens = hall.people.names, hall.patients.tokens
    reasons = hall.care.reasons
    times: dict[int, str] = {}

    def iso(seconds: int) -> str:
        if seconds not in times:
            times[seconds] = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
        return times[seconds]

    for feed, name in _FILES:
        rows = reasons.take(reasons.feed == feed)
        columns = zip(
            rows.who.tolist(), rows.patient.tolist(), rows.begin.tolist(), rows.end.tolist(),
            strict=True,
        )  # fmt: skip
        _write(
            directory / f"{name}.csv",
            ("subject", "patient", "from", "until"),
            (
                (names[who], tokens[which], iso(begin), iso(end))
                for who, which, begin, end in columns
            ),
        )
    people = hall.people
    _write(
        directory / "people.csv",
        "subject role department surname household status patient until".split(),
        (
            (
                name,
                ROLES[role].name,
                hall.departments.names[place],
                _surname(surname),
                _household(household),
                STATUSES[status],
                tokens[patient] if patient >= 0 else "",
                iso(hall.options.begin(until)) if until >= 0 else "",
            )
            for name, role, place, surname, household, status, patient, until in zip(
                names, people.role.tolist(), people.department.tolist(), people.surname.tolist(),
                people.household.tolist(), people.status.tolist(), people.patient.tolist(),
                people.until.tolist(), strict=True,
            )
        ),
    )  # fmt: skip
    patients = hall.patients
    _write(
        directory / "patients.csv",
        ("patient", "surname", "household", "vip"),
        (
            (token, _surname(surname), _household(household), "true" if vip else "false")
            for token, surname, household, vip in zip(
                tokens, patients.surname.tolist(), patients.household.tolist(),
                patients.vip.tolist(), strict=True,
            )
        ),
    )  # fmt: skip


def write_networks(path: Path) -> None:
    """What an operator knows of networks: which are the VPN's, and where the others are."""
    _write(path, Network._fields, NETWORKS)


def write_locations(path: Path) -> None:
    """The same as a geolocation database in MaxMind's format, with the names of GeoIP2's."""
    database = MMDBWriter(4, "GeoLite2-City", float_type="f64")
    for network in NETWORKS:
        if network.country:
            place = {
                "country": {"iso_code": network.country},
                "location": {
                    "latitude": float(network.latitude),
                    "longitude": float(network.longitude),
                    "accuracy_radius": network.radius_km,
                },
                "traits": {
                    "autonomous_system_number": network.asn,
                    "autonomous_system_organization": network.organization,
                },
            }
            database.insert_network(IPSet([network.cidr]), place)
    database.to_db_file(str(path))


def _write(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)


def _surname(number: int) -> str:
    return f"surname-{number:05d}" if number >= 0 else ""


def _household(number: int) -> str:
    return f"household-{number:06d}" if number >= 0 else ""
