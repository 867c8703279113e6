"""A receiver with a database of its own, for the tests of commands that read what it stored."""

import asyncio
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from programs import World, free_port, world

from authz import config
from authz.demo.stack import Part
from authz.record import Record
from authz.serve import tls
from authz.serve.tell import tell
from authz.store.client import connect


@dataclass(frozen=True)
class Receiving:
    """What is there: commands find the store and the receiver by `ours`."""

    directory: Path
    store: str
    address: str
    ours: World
    part: Part

    def tell(self, records: Iterable[Record], privacy_key_id: str = "") -> None:
        """Into the log, as one writer's."""
        options = config.load(None, {"ext_authz": {"receiver": self.address}}).ext_authz
        where = self.address, tls.to_receiver(options), self.directory / "writer"
        asyncio.run(tell(*where, list(records), privacy_key_id))


@contextmanager
def receiving(
    clickhouse, directory: Path, database: str, origin: str, **environment: str
) -> Iterator[Receiving]:
    """Up, with an empty log; the database is dropped at the end."""
    with connect(clickhouse.store) as admin, world() as ours:
        admin.execute(f"CREATE DATABASE {database}")
        store = f"{clickhouse.store.rpartition('/')[0]}/{database}"
        address = f"127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "authz", "serve", "receiver", "--listen", address]
        command += ["--origin", origin, "--data-dir", str(directory / "receiver")]
        part = Part("receiver", command, directory / "log", {"AUTHZ_STORE": store}, address)
        ours.environment |= {"AUTHZ_STORE": store, "AUTHZ_EXT_AUTHZ__RECEIVER": address}
        ours.environment |= environment
        try:
            part.start()
            part.wait_until_up()
            yield Receiving(directory, store, address, ours, part)
        finally:
            part.stop()
            admin.execute(f"DROP DATABASE {database}")
