"""Health of a gRPC server on the C core, asked by grpcio's own client."""

import core_running
import grpc
import pytest
from core_running import SECONDS, code, echo, wait_for
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from authz.serve.health import CoreHealth

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"


@pytest.fixture
def running(tmp_path):
    with core_running.servers(tmp_path) as make:
        yield make


def answer_of(message):
    return HealthCheckResponse.FromString(message).status


def asking(service):
    return HealthCheckRequest(service=service).SerializeToString()


@pytest.fixture
def health():
    return CoreHealth(["a.Service"])


def test_health_check(running, health):
    """Health is of the whole and of each service named; of another there is none."""
    one = running(echo, others=health.handlers())
    check = one.channel.unary_unary(CHECK)
    assert answer_of(check(asking(""), timeout=SECONDS)) == HealthCheckResponse.NOT_SERVING
    health.set(serving=True)
    assert answer_of(check(asking("a.Service"), timeout=SECONDS)) == HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as error:
        check(asking("b.Service"), timeout=SECONDS)
    assert code(error) == grpc.StatusCode.NOT_FOUND


def test_health_watch(running, health):
    """A watcher gets the state, every change of it, and the end when the server leaves."""
    one = running(echo, others=health.handlers())
    watch = one.channel.unary_stream(WATCH)(asking("a.Service"))
    unknown = one.channel.unary_stream(WATCH)(asking("b.Service"))
    seen = [answer_of(next(watch))]
    assert answer_of(next(unknown)) == HealthCheckResponse.SERVICE_UNKNOWN
    for serving in (True, False, True):
        health.set(serving=serving)
        seen.append(answer_of(next(watch)))
    health.leave()
    seen += [answer_of(message) for message in watch]
    no, yes = HealthCheckResponse.NOT_SERVING, HealthCheckResponse.SERVING
    assert seen == [no, yes, no, yes, no]
    health.set(serving=True)
    assert answer_of(one.channel.unary_unary(CHECK)(b"", timeout=SECONDS)) == no


def test_watchers_that_leave_are_forgotten(running, health):
    """A watcher's memory goes with it."""
    one = running(echo, others=health.handlers())
    for _ in range(50):
        watch = one.channel.unary_stream(WATCH)(asking(""))
        next(watch)
        watch.cancel()
    wait_for(lambda: not health._watching)
    health.set(serving=True)


def test_a_stream_that_makes_no_sense_is_ended(running, health):
    """A message that the handler cannot read ends its stream with an error; it is not left open,
    where it would hold up the stop."""
    one = running(echo, others=health.handlers())
    for method in (CHECK, WATCH):
        with pytest.raises(grpc.RpcError) as error:
            list(one.channel.unary_stream(method)(b"\xff", timeout=SECONDS))
        assert code(error) == grpc.StatusCode.INTERNAL
    assert one.ask(b"a", timeout=SECONDS) == b"re a"
