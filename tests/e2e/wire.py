"""Bytes and frames that no client library would send, and what comes back."""

import asyncio
import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
)

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_MAX_FRAME = 16_384
_HEAD = re.compile(rb"HTTP/1\.[01] [0-9]{3}.*?\r\n\r\n", re.DOTALL)
_USUAL = (("authorization", "Bearer {token}"), ("traceparent", "{trace}"))
_PERMISSION_DENIED = b"\r\ngrpc-status: 7\r\n"
_SERVED = re.compile(rb"\nx-served: ([0-9]+)\r", re.IGNORECASE)
_REPEATED = re.compile(r"\{(.[^*{}]*)\*([0-9]+)\}", re.DOTALL)


@dataclass(slots=True)
class Heard:
    """The final statuses of the answers, and the numbers of those that the service gave itself."""

    statuses: list[int] = field(default_factory=list)
    """A gRPC answer's is 200 over HTTP: here it is 403 for one that says PERMISSION_DENIED."""
    served: list[int] = field(default_factory=list)


def filled(text: str, values: Mapping[str, str]) -> bytes:
    """`text` with `{name}` replaced, and `{a*5}` written out as aaaaa; the rest as it stands."""
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    text = _REPEATED.sub(lambda found: found[1] * int(found[2]), text)
    return text.encode("latin-1")


async def send_http1(
    address: str, parts: Sequence[bytes], patience: float, source: str = ""
) -> Heard:
    """Write `parts`, a moment apart, and listen until the connection ends or nothing more comes.

    `source` is the address to send from.
    """
    reader, writer = await _connected(address, source)
    answer = b""
    try:
        for number, part in enumerate(parts):
            if number:
                await asyncio.sleep(0.05)
            writer.write(part)
            await writer.drain()
        answer = await _rest(reader, patience)
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    statuses = [_status(head) for head in _HEAD.findall(answer)]
    return Heard(
        [status for status in statuses if status >= 200 or status == 101],
        [int(number) for number in _SERVED.findall(answer)],
    )


def _status(head: bytes) -> int:
    return 403 if _PERMISSION_DENIED in head else int(head[9:12])


async def send_http2(
    address: str,
    frames: Sequence[Mapping[str, Any]],
    values: Mapping[str, str],
    patience: float,
    source: str = "",
) -> Heard:
    """Write the frames, without a look at whether they are any good, and listen.

    A frame is `{headers: [[name, value], ...]}` or `{data: text}`, each with `stream` (1) and `end`
    (true), `{bytes: text}` as it stands, or `{pause: seconds}`. `bytes` begins with the length.
    """
    reader, writer = await _connected(address, source)
    sent = [_PREFACE, SettingsFrame(0).serialize()]
    encoder = Encoder()
    heard = Heard()
    try:
        for frame in frames:
            if "pause" in frame:
                writer.write(b"".join(sent))
                sent = []
                await asyncio.sleep(frame["pause"])
            else:
                sent.append(_serialized(frame, encoder, values))
        writer.write(b"".join(sent))
        await writer.drain()
        await _listen(reader, heard, {frame.get("stream", 1) for frame in frames}, patience)
    except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        pass
    finally:
        writer.transport.abort()
    return heard


def _serialized(frame: Mapping[str, Any], encoder: Encoder, values: Mapping[str, str]) -> bytes:
    if "bytes" in frame:
        return filled(frame["bytes"], values)
    stream = frame.get("stream", 1)
    flags = ["END_STREAM"] if frame.get("end", True) else []
    if "data" in frame:
        return DataFrame(stream, filled(frame["data"], values), flags=flags).serialize()
    headers: list[tuple[bytes, bytes]] = []
    for header in frame["headers"]:
        pairs = _USUAL if header == "{usual}" else [header]
        headers += [(filled(name, values), filled(value, values)) for name, value in pairs]
    block = encoder.encode(headers)
    pieces = [block[at : at + _MAX_FRAME] for at in range(0, len(block), _MAX_FRAME)]
    made: list[Frame] = [HeadersFrame(stream, pieces[0], flags=flags)]
    made += [ContinuationFrame(stream, piece) for piece in pieces[1:]]
    made[-1].flags.add("END_HEADERS")
    return b"".join(one.serialize() for one in made)


async def _listen(
    reader: asyncio.StreamReader, heard: Heard, streams: set[int], patience: float
) -> None:
    decoder = Decoder()
    waiting = set(streams)
    async with asyncio.timeout(patience) as limit:
        while waiting:
            head = await reader.readexactly(9)
            frame, length = Frame.parse_frame_header(memoryview(head))
            frame.parse_body(memoryview(await reader.readexactly(length)))
            limit.reschedule(asyncio.get_running_loop().time() + patience)
            if isinstance(frame, HeadersFrame):
                fields = dict(decoder.decode(frame.data))
                if (status := int(fields.get(":status", 0))) >= 200:
                    heard.statuses.append(status)
                if "x-served" in fields:
                    heard.served.append(int(fields["x-served"]))
            if isinstance(frame, GoAwayFrame):
                return
            ended = isinstance(frame, (HeadersFrame, DataFrame)) and "END_STREAM" in frame.flags
            if ended or isinstance(frame, RstStreamFrame):
                waiting.discard(frame.stream_id)


async def _connected(
    address: str, source: str = ""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    local = (source, 0) if source else None
    return await asyncio.open_connection(host, int(port), local_addr=local)


async def _rest(reader: asyncio.StreamReader, patience: float) -> bytes:
    """What comes until the end, or until nothing has come for `patience` seconds."""
    heard = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while some := await asyncio.wait_for(reader.read(65_536), patience):
            heard += some
    return heard
