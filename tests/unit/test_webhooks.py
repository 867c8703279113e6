"""Webhooks, to a real HTTP server from a real log: each finding at least once, in order."""

import asyncio
import contextlib
import json
import ssl

import pytest
import standardwebhooks
from aiohttp import web
from certificates import Certificates
from logs import TestLog
from programs import free_port
from prometheus_client import REGISTRY
from raised import finding, use

from authz import config
from authz.errors import UsageError
from authz.serve import webhooks
from authz.serve.webhooks import Webhooks

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def log(tmp_path, database, monkeypatch):
    monkeypatch.setattr(webhooks, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(webhooks, "_FIRST_SECONDS", 0.02)
    monkeypatch.setattr(webhooks, "_MOST_SECONDS", 0.05)
    log = TestLog(tmp_path, database)
    keep(log, use())
    yield log
    log.close()
    log.writer_journal.close()


def keep(log, *records):
    log.append(log.written(list(records)))
    log.seal()


class Endpoint:
    """An HTTP server that answers as it is told (status, "hang" or "reset"), else with 200."""

    def __init__(self, *answers, port=0, tls=None, retry_after=""):
        self.answers = list(answers)
        self.port = port or free_port()
        self.headers = {"retry-after": retry_after} if retry_after else {}
        self.tls = tls
        self.seen = []
        """Of each request: its path, headers and body."""
        self.taken = asyncio.Event()

    async def __aenter__(self):
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls).start()
        return self

    async def __aexit__(self, *error):
        await self._runner.cleanup()

    async def _answer(self, request):
        self.seen.append((request.path, dict(request.headers), await request.read()))
        self.taken.set()
        answer = self.answers.pop(0) if self.answers else 200
        if answer == "hang":
            await asyncio.sleep(60)
        if answer == "reset":
            request.transport.abort()
            return web.Response()
        if callable(answer):
            answer = answer()
        return web.Response(status=answer, headers=self.headers, text="<html>whatever")

    @property
    def evidence(self):
        return [json.loads(body)["data"]["evidence"] for _, _, body in self.seen]

    def hook(self, **more):
        usual = {"name": "siem", "url": f"http://127.0.0.1:{self.port}/in", "phi": True}
        return config.Webhook(**(usual | {"timeout_seconds": 0.5} | more))


@contextlib.asynccontextmanager
async def running(log, *hooks):
    sending = Webhooks(hooks, log.directory, log.store)
    task = asyncio.create_task(sending.run())
    try:
        yield sending
        assert not task.done() or task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def cursor(log, name="siem"):
    return json.loads((log.directory / "webhooks" / f"{name}.json").read_bytes())["sent"]


async def begun(log, *names):
    """Each webhook has found out where the log ends."""
    while not all((log.directory / "webhooks" / f"{name}.json").exists() for name in names):
        await asyncio.sleep(0.01)


async def done_with(log, index, name="siem"):
    await begun(log, name)
    while cursor(log, name).get("test/receiver", -1) < index:
        await asyncio.sleep(0.01)


def evidence(first, end):
    return [finding(number)["evidence"] for number in range(first, end)]


def counted(form, result):
    labels = {"form": form, "result": result}
    return REGISTRY.get_sample_value("authz_webhook_sent_total", labels) or 0


def test_failures_delay_and_lose_nothing(log):
    """Errors, silence, broken connections, redirections and requests to slow down delay findings;
    each is sent, in order, and before the next."""
    answers = [500, "hang", "reset", 302, 200, 429, 401, 503, 200, 404]
    before = counted("generic", "failed"), counted("generic", "sent")

    async def send():
        async with Endpoint(*answers) as endpoint, running(log, endpoint.hook()):
            await begun(log, "siem")
            keep(log, *map(finding, range(4)))
            await done_with(log, 4)
            return endpoint

    endpoint = asyncio.run(asyncio.wait_for(send(), 60))
    zero, one, two, three = evidence(0, 4)
    assert endpoint.evidence == [zero] * 5 + [one] * 4 + [two] * 2 + [three]
    by_id = {headers["webhook-id"]: body for _, headers, body in endpoint.seen}
    assert len(by_id) == 4
    assert counted("generic", "failed") == before[0] + 8
    assert counted("generic", "sent") == before[1] + 4


def test_an_outage_and_restarts(log):
    """Everything that was found while nobody answered, over restarts and while nothing ran, comes
    afterwards, once each and in order; what was found before there was a webhook does not."""
    keep(log, finding(100))

    async def send():
        endpoint = Endpoint()  # nobody listens yet
        async with running(log, endpoint.hook()):
            await begun(log, "siem")
            keep(log, *map(finding, range(150)))
            await asyncio.sleep(0.3)
        keep(log, *map(finding, range(150, 250)))
        async with endpoint, running(log, endpoint.hook()):
            await done_with(log, 251)
        keep(log, finding(250))
        async with Endpoint() as other, running(log, other.hook()):
            await done_with(log, 252)
            return endpoint.evidence, other.evidence

    first, then = asyncio.run(asyncio.wait_for(send(), 60))
    assert first == evidence(0, 250)
    assert then == evidence(250, 251)


def test_a_stop_between_answer_and_note(log):
    """A stop after a finding was taken and before that was noted sends it again, as the same."""

    async def send():
        endpoint = Endpoint()
        async with endpoint:
            sending = Webhooks([endpoint.hook()], log.directory, log.store)
            task = asyncio.create_task(sending.run())
            await begun(log, "siem")
            endpoint.answers = [lambda: task.cancel() and 200]
            keep(log, finding(0))
            with contextlib.suppress(asyncio.CancelledError):
                await task
            async with running(log, endpoint.hook()):
                keep(log, finding(1))
                await done_with(log, 2)
        return endpoint

    endpoint = asyncio.run(asyncio.wait_for(send(), 60))
    assert endpoint.evidence == evidence(0, 1) * 2 + evidence(1, 2)
    first, again, other = [headers["webhook-id"] for _, headers, _ in endpoint.seen]
    assert first == again != other


def test_what_is_refused_does_not_bar_the_way(log):
    """A finding that an endpoint will not have is given up after three times, and counted."""
    before = counted("generic", "refused")

    async def send():
        async with Endpoint(400, 422, 413) as endpoint, running(log, endpoint.hook()):
            await begun(log, "siem")
            keep(log, finding(0), finding(1))
            await done_with(log, 2)
            return endpoint.evidence

    seen = asyncio.run(asyncio.wait_for(send(), 60))
    assert seen == evidence(0, 1) * 3 + evidence(1, 2)
    assert counted("generic", "refused") == before + 1


def test_one_does_not_wait_for_another(log):
    """An endpoint that is away delays no other; each gets the lanes it wants; what waits shows."""

    async def send():
        async with Endpoint() as up, Endpoint(*["hang"] * 100) as down:
            hooks = [up.hook(), down.hook(name="away"), up.hook(name="few", lanes=["review"])]
            async with running(log, *hooks):
                await begun(log, "siem", "away", "few")
                keep(log, finding(0), finding(1, lane="review"), finding(2))
                await done_with(log, 3)
                await done_with(log, 3, "few")
                waiting = REGISTRY.get_sample_value("authz_webhook_waiting", {"webhook": "away"})
                return up.evidence, waiting

    seen, waiting = asyncio.run(asyncio.wait_for(send(), 60))
    assert sorted(seen) == sorted(evidence(0, 3) + evidence(1, 2))
    assert waiting == 3


def test_a_database_that_is_away(log):
    """Findings come once the database answers."""

    async def send():
        async with Endpoint() as endpoint:
            (log.directory / "webhooks").mkdir()
            path = log.directory / "webhooks" / "siem.json"
            path.write_text('{"sent":{"test/receiver":0}}')
            nowhere = log.store.replace(log.store.split("@")[1], f"127.0.0.1:{free_port()}/x")
            sending = Webhooks([endpoint.hook()], log.directory, nowhere)
            task = asyncio.create_task(sending.run())
            await asyncio.sleep(0.3)
            assert not task.done()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            keep(log, finding(0))
            async with running(log, endpoint.hook()) as again:
                again.wake()
                await done_with(log, 1)
            return endpoint.evidence

    assert asyncio.run(asyncio.wait_for(send(), 60)) == evidence(0, 1)


def test_retry_after(log):
    """An endpoint that says how long to wait is given that long."""

    async def send():
        async with Endpoint(429, retry_after="1") as endpoint, running(log, endpoint.hook()):
            await begun(log, "siem")
            keep(log, finding(0))
            await endpoint.taken.wait()
            at = asyncio.get_running_loop().time()
            await done_with(log, 1)
            return asyncio.get_running_loop().time() - at

    assert asyncio.run(asyncio.wait_for(send(), 60)) > 0.9


def test_signed_over_tls(log, tmp_path):
    """With a secret, the library of Standard Webhooks accepts each message as it came, over TLS
    whose authority is ours, and no changed one."""
    authority = Certificates(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*authority.issue("127.0.0.1"))
    secret = tmp_path / "secret"
    secret.write_text(f"an-older-secret-of-ours\n{SECRET}\n")

    async def send():
        async with Endpoint(tls=tls) as endpoint:
            url = f"https://127.0.0.1:{endpoint.port}/in"
            hook = endpoint.hook(url=url, ca=authority.ca_file, secret=secret)
            stranger = endpoint.hook(name="stranger", url=url)
            async with running(log, hook, stranger):
                await begun(log, "siem", "stranger")
                keep(log, finding(0))
                await done_with(log, 1)
            return endpoint.seen, cursor(log, "stranger")

    [(_, headers, body)], stranger = asyncio.run(asyncio.wait_for(send(), 60))
    assert stranger == {"test/receiver": 0}
    headers = {name.lower(): value for name, value in headers.items()}
    told = standardwebhooks.Webhook(SECRET).verify(body, headers)
    assert told["type"] == "authz.finding.raised"
    assert told["data"]["id"] == "test/receiver@1"
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(SECRET).verify(body + b" ", headers)


def test_wrong_configuration(log, tmp_path):
    """What is configured wrongly is refused at the start, by name."""

    def wrong(**more):
        hook = config.Webhook(**({"name": "siem", "url": "https://siem.example/"} | more))
        with pytest.raises(UsageError) as error:
            Webhooks([hook, hook] if more == {} else [hook], log.directory, log.store)
        return str(error.value)

    assert "siem is there twice" in wrong()
    assert "say plaintext: true" in wrong(url="http://siem.example/")
    assert "secret" in wrong(secret=tmp_path / "none")
    short = tmp_path / "short"
    short.write_text("x\n")
    assert "16 bytes or more" in wrong(secret=short)
    short.write_text("whsec_***\n")
    assert "want base64" in wrong(secret=short)
    assert "ca" in wrong(ca=short)
    (log.directory / "webhooks" / "siem.json").write_text("[]")
    assert "not what a webhook was sent" in wrong(timeout_seconds=1)
    (log.directory / "webhooks" / "siem.json").unlink()
    plain = config.Webhook(name="siem", url="http://siem.example/", plaintext=True)
    Webhooks([plain], log.directory, log.store)
