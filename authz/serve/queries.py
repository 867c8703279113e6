"""Queries that people ask of the database themselves, put on record by ``authz watch``.

Order of steps: what the server's log of queries has since the place that is kept, and a minute
before it, is read; what is not on record yet goes into this process's journal, on disk; then the
place is kept. Whatever a crash leaves out is read again. A query has a key, which its notice names:
what this process told, what its journal has, and what the store has is not told again. The first
start begins an hour before itself.
"""

import asyncio
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

import orjson
import structlog
from prometheus_client import Counter, Gauge
from pydantic import TypeAdapter, ValidationError

from authz.config import Config
from authz.errors import UnavailableError, UsageError
from authz.files import replace_file
from authz.journal.chain import split
from authz.journal.segments import JournalError
from authz.record import details_of
from authz.report.direct import COMMAND, notices
from authz.serve.grpc_server import in_thread
from authz.serve.writer import Writer, now_us
from authz.store.accounts import Accounted
from authz.store.client import QUERY_ERRORS, connect, explain
from authz.store.query_log import Query, QueryLog, newest, on_record

_PAUSE_SECONDS = 5
_AT_ONCE = 1000  # queries
_REMEMBERED = 100_000  # a minute's, many times over
_HOUR_US = 3_600_000_000  # before the first start
_SOONER_US = 600_000_000  # by how much the receiver's clock may be behind the database's

QUERIES = Counter("authz_watch_queries", "Queries past authz that were put on record")
READABLE = Gauge("authz_watch_query_log", "1: the database's log of queries is put on record")

logger = structlog.get_logger()


class Queries:
    """Owns the place up to which the log of queries is on record. For one thread at a time."""

    def __init__(self, config: Config, writer: Writer) -> None:
        store = config.database
        self._store = store
        self._client, self._reading = connect(store), connect(store)
        self._own = (unquote(urlsplit(store).username or "default"), *config.watch.own_users)
        self._writer = writer
        self._path = config.data_dir / "queries.json"
        self._reached = _load(self._path)
        self._started = now_us()
        self._told = self._in_journal()
        self._settled = False
        self._said: str | None = None
        self._warned: set[str] = set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await in_thread(self.take_over)
            await asyncio.sleep(_PAUSE_SECONDS)

    def take_over(self) -> None:
        """Put on record what is new. What cannot be done now is said, and done later."""
        try:
            log = QueryLog(self._reading, self._own)
            if not log.readable:
                self._say(
                    "it has no system.query_log, or this user may not read it"
                    " (GRANT SELECT ON system.query_log)"
                )
            elif not self._all_stored():
                self._say("records of this process wait to be stored")
            else:
                self._take(log)
                self._say("")
        except QUERY_ERRORS as error:
            self._say(str(explain(error, self._store)))
            self.close()
        except (JournalError, UnavailableError) as error:
            self._say(str(error))
            self._reading.disconnect()

    def close(self) -> None:
        self._client.disconnect()
        self._reading.disconnect()

    def _take(self, log: QueryLog) -> None:
        begin = self._begin()
        reached = log.reached(self._reached, begin)
        since = {server: self._reached.get(server, begin) for server in reached}
        found = log.ended(since, reached)
        while some := list(islice(found, _AT_ONCE)):
            new = [query for query in some if query.key not in self._told]
            if new and (new := self._not_stored(new)):
                self._writer.committer.commit([(record, b"") for record in notices(new)])
                QUERIES.inc(len(new))
                self._warn({query.user for query in new if query.ours})
            self._remember(query.key for query in some)
        self._reached |= reached
        try:
            replace_file(self._path, orjson.dumps(self._reached))
        except OSError as error:
            raise UnavailableError(f"{self._path}: {error.strerror}") from None

    def _begin(self) -> int:
        """Where to begin with a server that is new: it has nothing from before the others' places,
        unless all are."""
        if not self._reached:
            on_record_until = newest(self._client) or self._started
            return min(on_record_until, self._started) - _HOUR_US
        return min(self._reached.values())

    def _not_stored(self, queries: Sequence[Query]) -> list[Query]:
        since = min(query.began for query in queries) - _SOONER_US
        stored = on_record(self._client, [query.key for query in queries], max(since, 0))
        return [query for query in queries if query.key not in stored]

    def _all_stored(self) -> bool:
        """Whether all that this writer's journal has forgotten can be asked for in the store."""
        if not self._settled:
            writer, first = self._writer.identity.writer, self._writer.journal.first
            _, stored = Accounted(self._client, "").newest([writer]).get(writer, (0, first))
            self._settled = stored >= first - 1
        return self._settled

    def _remember(self, keys: Iterable[str]) -> None:
        self._told |= dict.fromkeys(keys)
        for key in list(islice(self._told, max(len(self._told) - _REMEMBERED, 0))):
            del self._told[key]

    def _in_journal(self) -> dict[str, None]:
        """The keys of queries that this process told, and that may not be stored yet."""
        found: dict[str, None] = {}
        reader = self._writer.journal.reader(self._writer.journal.first)
        while payloads := reader.take(1000):
            for payload in payloads:
                told = details_of(orjson.loads(split(payload)[0]))
                if told.get("command") == COMMAND:
                    found |= dict.fromkeys(told.get("queries", ()))
        reader.close()
        return found

    def _say(self, why_not: str) -> None:
        """Say it once, that queries past authz are put on record, or why they are not."""
        READABLE.set(not why_not)
        if why_not == self._said:
            return
        if why_not:
            logger.warning("queries past authz are not put on record", reason=why_not)
        else:
            logger.info("queries past authz are put on record")
        self._said = why_not

    def _warn(self, users: set[str]) -> None:
        for user in sorted(users - self._warned):
            logger.warning(
                "queries that say they are authz's are put on record as looks; if only authz's"
                " processes have this user, name it in watch.own_users", user=user,
            )  # fmt: skip
        self._warned |= users


def _load(path: Path) -> dict[str, int]:
    """Up to where each server's log of queries is on record, by its own clock."""
    try:
        return TypeAdapter(dict[str, int]).validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except ValidationError:
        raise UsageError(
            f"{path}: not what authz watch keeps; delete it, and it finds its place by the log"
        ) from None
