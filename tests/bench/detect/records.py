"""From requests as columns to canonical records, as the receiver leaves them."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from authz.record import SCHEMA_VERSION
from tests.bench.detect.events import ALLOWED, DENIED, PATHS, REJECTED, Events
from tests.bench.detect.places import AGENTS, NETWORKS, address
from tests.bench.detect.population import ROLES, Ints, Patients, People

_VERB: Final = {"R": "read", "E": "search", "C": "create", "U": "update"}
_SITES: Final = ("sidecar-0", "sidecar-1", "sidecar-2")
_GLASS: Final = (
    "unconscious on arrival", "allergies unknown", "transfer without papers", "no time to ask",
    "acute deterioration", "covering for a colleague",
)  # fmt: skip
_TOKENS: Final = (
    "Jwt_is_expired", "Jwt_is_expired", "Jwt_is_expired", "Jwt_is_expired", "Jwt_is_missing",
    "Jwt_verification_fails",
)  # fmt: skip
_REVISION: Final = "3f6c1b0f9a55"
_CHUNK: Final = 50_000


def ids(events: Events) -> list[str]:
    """What each request is called by: the decision's id, or the request's where there is none."""
    return [
        _request_id(text) if outcome == REJECTED else _decision_id(time, text)
        for time, text, outcome in zip(
            events.time.tolist(), _hexadecimal(events), events.outcome.tolist(), strict=True
        )
    ]


def _hexadecimal(events: Events) -> list[str]:
    text = np.column_stack([events.high, events.low]).tobytes().hex()
    return [text[begin : begin + 32] for begin in range(0, len(text), 32)]


def _decision_id(time: int, text: str) -> str:
    """A UUID of version 7, as authz makes them."""
    stamp = f"{time // 1000:012x}"
    return f"{stamp[:8]}-{stamp[8:]}-7{text[:3]}-a{text[3:6]}-{text[6:18]}"


def _request_id(text: str) -> str:
    return f"{text[24:32]}-{text[18:22]}-4{text[1:4]}-8{text[5:8]}-{text[12:24]}"


class Writer:
    """Makes records of requests; the texts they share are made once."""

    def __init__(self, people: People, patients: Patients) -> None:
        self._names = people.names
        self._roles = people.role
        self._tokens = patients.tokens
        self._addresses: dict[int, str] = {}
        self._reasons = [
            [
                f"{role.name} may {_VERB[path.action]} {path.type or 'metadata'} for {role.purpose}"
                for path in PATHS
            ]
            for role in ROLES
        ]
        self._denials = [
            [f"{role.name} may not {_VERB[path.action]} {path.type}" for path in PATHS]
            for role in ROLES
        ]

    def records(self, events: Events) -> Iterator[dict[str, Any]]:
        """In the order of `events`; a denial is two, its decision first."""
        for begin in range(0, len(events), _CHUNK):
            yield from self._some(events.take(slice(begin, begin + _CHUNK)))

    def _some(self, events: Events) -> list[dict[str, Any]]:
        made = self._plain(events)
        plain = (events.outcome == ALLOWED) & ~events.glass
        for number in np.flatnonzero(events.patient < 0).tolist():
            del made[number]["patients"]
        for number in np.flatnonzero(np.isin(events.path, _TYPELESS)).tolist():
            del made[number]["resource_type"]
        for number in np.flatnonzero(~_COUNTRY[events.network]).tolist():
            del made[number]["country"]
        if plain.all():
            return made
        out: list[dict[str, Any]] = []
        done = 0
        for number in np.flatnonzero(~plain).tolist():
            out += made[done:number]
            out += self._special(events, number, made[number])
            done = number + 1
        out += made[done:]
        return out

    def _plain(self, events: Events) -> list[dict[str, Any]]:
        role = self._roles[events.who].tolist()
        path = events.path.tolist()
        who = events.who.tolist()
        time = events.time.tolist()
        text = _hexadecimal(events)
        tokens, names = self._tokens, self._names
        return [
            {
                "kind": "access",
                "schema": SCHEMA_VERSION,
                "writer": _NODES[low & 3],
                "decided_by": _WRITERS[low & 3],
                "time": at,
                "subject": names[person],
                "roles": [_ROLE[part]],
                "tenant": "lakeside",
                "purpose": _PURPOSE[part],
                "reason": self._reasons[part][what],
                "decision_id": _decision_id(at, random),
                "allowed": True,
                "enforced": True,
                "reason_code": "allowed",
                "policy_revision": _REVISION,
                "method": _METHOD[what],
                "host": "fhir.hospital.example",
                "path": _PATH[what],
                "resource_type": _TYPE[what],
                "patients": [tokens[patient]],
                "action": _ACTION[what],
                "source_ip": ip,
                "country": _COUNTRIES[network],
                "user_agent": AGENTS[agent],
                "status": status,
                "response_details": "via_upstream",
                "bytes_out": size,
                "duration_us": took,
                "request_id": _request_id(random),
            }
            for at, random, person, part, what, patient, ip, network, agent, status, size, took, low
            in zip(
                time, text, who, role, path, events.patient.tolist(), self._ips(events.ip),
                events.network.tolist(), events.agent.tolist(), events.status.tolist(),
                events.bytes.tolist(), events.took.tolist(), events.low.tolist(), strict=True,
            )
        ]  # fmt: skip

    def _ips(self, ip: Ints) -> list[str]:
        known = self._addresses
        found = []
        for each in ip.tolist():
            text = known.get(each)
            if text is None:
                text = known[each] = address(each)
            found.append(text)
        return found

    def _special(self, events: Events, number: int, access: dict[str, Any]) -> list[dict[str, Any]]:
        low, outcome = int(events.low[number]), events.outcome[number]
        if outcome == REJECTED:
            kept = {name: value for name, value in access.items() if name not in _DECIDED}
            kept |= {
                "response_details": f"jwt_authn_access_denied{{{_TOKENS[low % len(_TOKENS)]}}}",
                "bytes_out": 20,
            }
            return [kept]
        if events.glass[number]:
            access["break_glass"] = True
            access["purpose"] = "ETREAT"
            excuse = _GLASS[(int(events.patient[number]) + int(events.time[number]) // 10**10) % 6]
            access["reason"] = f"break-glass by {access['roles'][0]}: {excuse}"
        if outcome != DENIED:
            return [access]
        del access["allowed"]
        access["reason_code"] = "denied"
        access["reason"] = self._denials[self._roles[events.who[number]]][events.path[number]]
        access["response_details"] = "ext_authz_denied"
        decision = {name: value for name, value in access.items() if name not in _TOLD_BY_ENVOY}
        decision |= {"kind": "decision", "writer": access["decided_by"]}
        return [decision, access]


_NODES: Final = [f"envoy:{_SITES[n % 3]}" for n in range(4)]
_WRITERS: Final = [f"ext-authz-{n % 3}" for n in range(4)]
_ROLE: Final = [role.name for role in ROLES]
_PURPOSE: Final = [role.purpose for role in ROLES]
_METHOD: Final = [path.method for path in PATHS]
_PATH: Final = [path.path for path in PATHS]
_TYPE: Final = [path.type for path in PATHS]
_ACTION: Final = [path.action for path in PATHS]
_TYPELESS: Final = [number for number, path in enumerate(PATHS) if not path.type]
_COUNTRIES: Final = [network.country for network in NETWORKS]
_COUNTRY: Final = np.array([bool(network.country) for network in NETWORKS])
_DECIDED: Final = frozenset(
    """decided_by subject roles tenant purpose reason decision_id allowed enforced reason_code
    policy_revision""".split()
)
_TOLD_BY_ENVOY: Final = frozenset(
    ("decided_by", "response_details", "bytes_out", "duration_us", "country")
)
