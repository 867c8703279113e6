"""A request or connection that lasts is told to be under way, with its decision's id, to its end.

The entries are those of a real Envoy with the shipped bootstrap, only told more often.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import yaml
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogType
from google.protobuf.message import Message
from sidecar import Log, decision_id, manager, sidecar

from authz.demo.stack import HOST, deploy_dir, free_port
from authz.envoy.access_log import http_access, tcp_access

README = (deploy_dir() / "envoy" / "README.md").read_text()
LISTENER = re.findall(r"^```yaml\n(.*?)^```", README, re.DOTALL | re.MULTILINE)[2]
LONG_SECONDS = 2.5
EVERY = {"access_log_flush_interval": "1s"}
PERIODIC = ("DownstreamPeriodic", "TcpPeriodic")
ENDS = ("DownstreamEnd", "TcpConnectionEnd")


@dataclass(frozen=True)
class Told:
    """The entries of each decision, in order, by the name of its request."""

    entries: dict[str, list[Message]]

    def kinds(self, name: str) -> list[str]:
        return [AccessLogType.Name(e.common_properties.access_log_type) for e in self.of(name)]

    def of(self, name: str) -> list[Message]:
        return self.entries[f"id of {name}"]


def edit(document: dict[str, Any]) -> None:
    """Every second; WebSockets, which may last two seconds; and the README's TCP listener."""
    http = manager(document)
    assert http["access_log_options"] == {"access_log_flush_interval": "20s"}
    http["access_log_options"] = EVERY
    http["upgrade_configs"] = [{"upgrade_type": "websocket"}]
    resources = document["static_resources"]
    listener = yaml.safe_load(LISTENER)
    proxy = listener["filter_chains"][0]["filters"][1]["typed_config"]
    assert proxy["access_log_options"] == {"access_log_flush_interval": "20s"}
    proxy["access_log_options"] = EVERY
    listener["address"]["socket_address"]["port_value"] = PORTS["listen"]
    resources["listeners"].append(listener)
    [behind] = [one for one in resources["clusters"] if one["name"] == "service"]
    database = yaml.safe_load(yaml.safe_dump({**behind, "name": "database"}))
    database["load_assignment"]["cluster_name"] = "database"
    [[endpoint]] = [one["lb_endpoints"] for one in database["load_assignment"]["endpoints"]]
    endpoint["endpoint"]["address"]["socket_address"]["port_value"] = PORTS["behind"]
    resources["clusters"].append(database)


PORTS = {"listen": free_port(), "behind": free_port()}


async def live_through(directory) -> Log:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, HOST, PORTS["behind"])
    async with server, sidecar(directory, edit) as ours, aiohttp.ClientSession() as client:

        async def get(name: str, path: str) -> None:
            async with client.get(ours.url + path, headers=ours.headers(name)) as response:
                assert response.status == 200
                await response.read()

        async def leave() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(LONG_SECONDS):
                    await get("left", "/stream?s=20")

        async def socket() -> None:
            url = f"{ours.url}/socket"
            async with client.ws_connect(url, headers=ours.headers("socket")) as connection:
                await connection.send_str("hello")
                await connection.receive_str()
                await asyncio.sleep(LONG_SECONDS)

        async def tcp() -> None:
            reader, writer = await asyncio.open_connection(HOST, PORTS["listen"])
            writer.write(b"hello")
            assert await reader.read(10) == b"hello"
            await asyncio.sleep(LONG_SECONDS)
            writer.close()

        await asyncio.gather(
            get("short", "/answer"),
            get("slow", f"/answer?s={LONG_SECONDS}"),
            get("stream", f"/stream?s={LONG_SECONDS}"),
            leave(),
            socket(),
            tcp(),
        )
        async with asyncio.timeout(10):
            while len(ours.log.of("DownstreamEnd")) + len(ours.log.of("TcpConnectionEnd")) < 6:
                await asyncio.sleep(0.1)
        return ours.log


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Told:
    log = asyncio.run(live_through(tmp_path_factory.mktemp("long")))
    entries: dict[str, list[Message]] = {}
    for entry in log.entries():
        entries.setdefault(decision_id(entry), []).append(entry)
    return Told(entries)


@pytest.mark.parametrize("name", ["slow", "stream", "left", "socket", "a connection"])
def test_under_way(told, name):
    """Every second there is an entry with the decision's id and no end, and one end at last."""
    *before, last = told.kinds(name)
    assert len(before) >= 2
    assert set(before) <= set(PERIODIC)
    assert last in ENDS
    read = tcp_access if name == "a connection" else http_access
    ends = [read(entry).get("end_of_stream", False) for entry in told.of(name)]
    assert ends == [False] * len(before) + [True]


def test_every_entry_has_its_decision(told):
    """None of them comes without its decision's id, nor one of another kind."""
    names = ("short", "slow", "stream", "left", "socket", "a connection")
    assert told.entries.keys() == {f"id of {name}" for name in names}


def test_a_short_request_has_one_entry(told):
    """What ends before has its end only."""
    assert told.kinds("short") == ["DownstreamEnd"]


def test_what_an_entry_in_between_says(told):
    """The service that was reached, the status once there is one, and the bytes so far."""
    first, *_, last = (http_access(entry) for entry in told.of("stream"))
    assert (first["upstream"], first["status"]) == (last["upstream"], 200)
    assert 0 < first["bytes_out"] < last["bytes_out"]
    assert first["authz"] == last["authz"]
    assert "duration_us" not in first
    waiting = http_access(told.of("slow")[0])
    assert waiting["upstream"]
    assert "status" not in waiting
    assert http_access(told.of("socket")[0])["status"] == 101
