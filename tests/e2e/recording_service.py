"""A service that writes down every request exactly as it came, and answers 200.

    python recording_service.py --listen 127.0.0.1:8080 --record requests.ndjson

One line for each request, before the answer: `{"served", "connection", "head", "body"}`, bytes as
latin-1. What cannot be read as HTTP/1.1 is a line `{"connection", "unreadable"}`. The answer's
header `x-served` has the request's number.
"""

import argparse
import asyncio
import itertools
import json
import re
from pathlib import Path

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+) *(?=\r\n)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked *(?=\r\n)", re.IGNORECASE)


class Service:
    def __init__(self, record: Path) -> None:
        self._record = record.open("a", encoding="ascii")
        self._connections = itertools.count(1)
        self._served = itertools.count(1)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = next(self._connections)
        try:
            while head := await self._head(reader, connection):
                body = await _body(reader, head)
                served = next(self._served)
                self._write(
                    served=served,
                    connection=connection,
                    head=head.decode("latin-1"),
                    body=body.decode("latin-1"),
                )
                answer = f"HTTP/1.1 200 OK\r\nx-served: {served}\r\ncontent-length: 6\r\n\r\n"
                writer.write(answer.encode() + (b"" if head.startswith(b"HEAD ") else b"record"))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _head(self, reader: asyncio.StreamReader, connection: int) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                self._write(connection=connection, unreadable=error.partial.decode("latin-1"))
            return b""

    def _write(self, **what: object) -> None:
        self._record.write(json.dumps(what) + "\n")
        self._record.flush()


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if _CHUNKED.search(head):
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
        return body
    length = _LENGTH.search(head)
    return await reader.readexactly(int(length[1])) if length else b""


async def serve(listen: str, record: Path) -> None:
    host, _, port = listen.rpartition(":")
    service = Service(record)
    server = await asyncio.start_server(service.connected, host, int(port), limit=1 << 20)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--record", required=True, type=Path)
    options = parser.parse_args()
    asyncio.run(serve(options.listen, options.record))
