"""One run of the demo: the parts up, the traffic sent, the count made, the log verified."""

import asyncio
import contextlib
import shutil
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from authz.config import load
from authz.demo import traffic
from authz.demo.people import PEOPLE, Request
from authz.demo.stack import Stack, deploy_dir
from authz.demo.tamper import Tampering, tamper
from authz.errors import UnavailableError
from authz.files import replace_file
from authz.store.client import QUERY_ERRORS, Client, connect, explain
from authz.trust import load_trust
from authz.verify import Report, verify_store
from authz.verify.logs import State

_SETTLE_SECONDS = 30


class Progress(Protocol):
    def say(self, text: str) -> None: ...
    def count(self, what: str, total: int) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the same person doing the same thing with the same outcome."""

    who: str
    purpose: str
    what: str
    times: int
    outcome: str
    patients: int
    """How many different ones were named by the requests or shown in the answers."""
    reason: str


@dataclass(slots=True)
class Result:
    """What the demo shows. `stored` counts the requests (outside those that Envoy rejected) whose
    row is in the database with its decision."""

    sent: int = 0
    decisions: int = 0
    accesses: int = 0
    rejected_by_envoy: int = 0
    stored: int = 0
    allowed: int = 0
    denied: int = 0
    gaps: int = 0
    verified: bool = False
    records: int = 0
    checkpoint: str = ""
    tampering: list[Tampering] = field(default_factory=list)
    seconds: float = 0
    table: list[Row] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Every request was recorded and verified, and every tampering was caught."""
        counts = {self.sent, self.decisions, self.accesses, self.stored}
        caught = [item.caught for item in self.tampering]
        return (
            len(counts) == 1 and self.verified and not self.gaps and not self.unexpected
            and len(caught) == 3 and all(caught)
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        shown = ("sent", "decisions", "accesses", "rejected_by_envoy", "stored", "allowed",
                 "denied", "gaps", "verified", "records", "checkpoint", "unexpected")  # fmt: skip
        return {name: getattr(self, name) for name in shown} | {
            "tampering": [asdict(item) for item in self.tampering],
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, slots=True)
class _Counts:
    """What the table holds; a data directory may have been used before."""

    decisions: int
    accesses: int
    allowed: int = 0
    rejected: int = 0
    stored: int = 0

    def __sub__(self, other: "_Counts") -> "_Counts":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return _Counts(*[mine - theirs for mine, theirs in pairs])


def _counts(client: Client) -> _Counts:
    query = (
        "SELECT countIf(kind = 'decision'), countIf(kind = 'access'),"
        " countIf(kind = 'decision' AND allowed), countIf(kind = 'access' AND decision_id = '')"
        " FROM audit_log"
    )
    [row] = client.execute(query)
    [(stored,)] = client.execute("SELECT count() FROM requests WHERE decision_id != ''")
    decisions, accesses, allowed, rejected = row
    return _Counts(decisions, accesses, allowed, rejected, stored)


class Demo:
    """The stack in `directory`, and what is done with it."""

    def __init__(self, directory: Path, progress: Progress, config: Path | None = None) -> None:
        # A copy, to be changed while it runs.
        policy = directory / "policy"
        # A laptop that is busy while everything starts is no reason to deny.
        self.stack = Stack(directory, policy=policy, config=config, timeout_ms=2000)
        self.config = self.stack.data_dir / "authz.yaml"
        """What commands beside the demo take as ``--config``; there while it runs."""
        self.console: str | None = None
        self._privacy = load(config).privacy
        self._progress = progress
        self._begun = time.monotonic()

    def start(self) -> None:
        self.stack.make_directories()
        if not self.stack.policy.exists():
            shutil.copytree(deploy_dir() / "opa", self.stack.policy)
        self.stack.start(lambda name: self._progress.say(f"starting {name}"))
        key = self._privacy.key or self.stack.data_dir / "ext-authz" / "privacy.key"
        told = {
            "store": self.stack.store,
            "ext_authz": {"receiver": self.stack.parts["receiver"].address},
            "privacy": {
                "key": str(key.resolve()),
                "old_keys": [str(old.resolve()) for old in self._privacy.old_keys],
            },
        }
        # It holds the database's password.
        replace_file(self.config, yaml.safe_dump(told, sort_keys=False).encode())

    def show(self) -> None:
        """Start the console, for whoever uses this machine."""
        told = yaml.safe_load(self.config.read_text())
        told["data_dir"] = str(self.stack.data_dir)
        told["console"] = {
            "policy": str(self.stack.policy / "console.rego"),
            "trust": str(self.stack.trust),
            "everyone": "officer",
            "everyone_roles": ["privacy-officer"],
        }
        replace_file(self.config, yaml.safe_dump(told, sort_keys=False).encode())
        self._progress.say("starting console")
        self.console = self.stack.start_console(self.config)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.config.unlink()
        self.stack.stop()

    def watch(self) -> None:
        """Raises `UnavailableError` if a part has ended by itself."""
        for part in self.stack.parts.values():
            if part.process is None or part.process.poll() is not None:
                raise UnavailableError(f"{part.name} has ended; see {part.log}")

    def addresses(self) -> dict[str, Any]:
        """What ``--keep --json`` prints."""
        parts = self.stack.parts
        return {
            "envoy": self.stack.envoy,
            "store": self.stack.store,
            "http": self.stack.http,
            "console": self.console,
            "ext_authz": parts["ext-authz"].address,
            "receiver": parts["receiver"].address,
            "trust": str(self.stack.trust),
            "data_dir": str(self.stack.data_dir),
            "tokens": {name: self.stack.keys.token(who) for name, who in PEOPLE.items()},
        }

    def run(self, requests: int, seconds: float | None) -> Result:
        """Send, count, verify, tamper. Raises `AuthzError`."""
        try:
            with connect(self.stack.store) as client:
                return self._run(client, requests, seconds)
        except QUERY_ERRORS as error:
            raise explain(error, self.stack.store) from None

    def _run(self, client: Client, requests: int, seconds: float | None) -> Result:
        before = _counts(client)
        sent = self._send(requests, seconds)
        self._progress.say("waiting for Envoy's access logs")
        self._settle(client, before, sent)
        logs = load_trust(self.stack.trust)
        accepted: State = {}
        with self._progress.count("verifying every record", 1) as update:
            report = verify_store(client, logs, accepted, lambda done, _all: update(done))
        self._progress.say(f"verified {report.records} records")
        result = self._result(_counts(client) - before, sent, report)
        result.checkpoint = self._checkpoint(client)
        result.table = self._table(client)
        if report.verified:
            self._progress.say("tampering with a copy, three times")
            result.tampering = tamper(self.stack.store, logs, accepted)
        result.seconds = time.monotonic() - self._begun
        return result

    def _send(self, requests: int, seconds: float | None) -> traffic.Sent:
        first = True

        def show(done: int, request: Request, status: int) -> None:
            nonlocal first
            if first and request.expect != "rejected":
                who = PEOPLE[request.person].sub if request.person else "nobody"
                self._progress.say(f"first answer: {who} {request.method} -> {status}")
                first = False
            update(done)

        with self._progress.count("sending requests through Envoy", requests) as update:
            sent = asyncio.run(
                traffic.send(self.stack.envoy, self.stack.keys, requests, seconds, show)
            )
        self._progress.say(f"{sent.decided + sent.rejected} requests answered")
        return sent

    def _settle(self, client: Client, before: _Counts, sent: traffic.Sent) -> None:
        """Envoy flushes its access log every second; wait until all of it is stored."""
        want = _Counts(
            before.decisions + sent.decided, before.accesses + sent.decided + sent.rejected
        )
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            query = (
                "SELECT countIf(kind = 'decision'), countIf(kind = 'access'),"
                " (SELECT max(size) FROM checkpoints) > max(index),"
                " uniqExactIf(decision_id, kind = 'disclosure')"
                " >= countIf(kind = 'access' AND discloses AND upstream != '') FROM audit_log"
            )
            [(decisions, accesses, covered, shown)] = client.execute(query)
            if decisions >= want.decisions and accesses >= want.accesses and covered and shown:
                return
            time.sleep(0.1)

    def _result(self, found: "_Counts", sent: traffic.Sent, report: Report) -> Result:
        return Result(
            sent=sent.decided,
            decisions=found.decisions,
            accesses=found.accesses - found.rejected,
            rejected_by_envoy=found.rejected,
            stored=found.stored,
            allowed=found.allowed,
            denied=found.decisions - found.allowed,
            gaps=sum(report.gaps.values()) + report.pending,
            verified=report.verified,
            records=report.records,
            unexpected=sent.unexpected,
        )

    def _checkpoint(self, client: Client) -> str:
        query = "SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1"
        [(note,)] = client.execute(query)
        return str(note)

    def _table(self, client: Client) -> list[Row]:
        rows = client.execute(
            "SELECT subject, purpose, concat(method, ' ', replaceOne(path, '/fhir/', '')),"
            " count(), if(allowed, 'allowed', 'denied'),"
            " uniqExactArray(arrayConcat(patients, disclosed)), reason"
            " FROM requests WHERE decision_id != ''"
            " GROUP BY 1, 2, 3, 5, 7 ORDER BY 5, 1, 4 DESC"
        )
        rows += client.execute(  # Envoy says jwt_authn_access_denied{Jwt_is_missing}
            "SELECT '(nobody)', '', concat(method, ' ', replaceOne(path, '/fhir/', '')), count(),"
            " 'rejected', 0,"
            " replaceAll(replaceRegexpOne(response_details, '.*\\{(.*)\\}', '\\1'), '_', ' ')"
            " FROM requests WHERE decision_id = '' GROUP BY 3, 7 ORDER BY 4 DESC"
        )
        return [Row(*row) for row in rows]
