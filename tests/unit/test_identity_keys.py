"""Key sets: read from files and over HTTP, kept while they may be, and given up when they are."""

import asyncio
import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from identity_provider import RSA, KeyServer, Signer, config, identities, jwks, refusal, subject
from jwt.algorithms import ECAlgorithm

from authz.errors import UsageError
from authz.identity.keys import Keys, KeysError
from authz.identity.sources import Identities

QUICK = {"refresh_seconds": 1, "unknown_key_seconds": 0.1}


@contextlib.asynccontextmanager
async def watched(known):
    """`known`, started and watched as a server does it."""
    await known.start()
    task = asyncio.create_task(known.watch())
    yield known
    assert not task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    return condition()


@pytest.fixture
def server():
    served = KeyServer()
    served.up()
    yield served
    served.down()


def replace(path, text):
    """As Kubernetes and careful editors do it: the new file takes the old one's place."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"keys": {}}',
        '{"keys": null}',
        '{"keys": [], "x": NaN}',
        "\xff",
    ],
)
def test_no_key_set(tmp_path, text):
    """What is no key set stops the start, and names the key and the file."""
    path = tmp_path / "jwks.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=rf"^identity.issuers: jwks {path}: it is no "):
        Identities(config(path))


def test_no_file(tmp_path):
    """A file that is absent, a directory or too large stops the start."""
    with pytest.raises(UsageError, match="No such file"):
        Identities(config(tmp_path / "absent"))
    with pytest.raises(UsageError, match="directory"):
        Identities(config(tmp_path))
    (tmp_path / "large").write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(UsageError, match="larger than"):
        Identities(config(tmp_path / "large"))


def test_no_usable_key(tmp_path):
    """A file whose keys verify nothing stops the start, and says what is wanted."""
    path = tmp_path / "jwks.json"
    for member in (
        {"kty": "oct", "k": "AAAA"},
        Signer().jwk(use="enc"),
        Signer().jwk(key_ops=["x"]),
    ):
        path.write_text(jwks(member))
        with pytest.raises(UsageError, match="no public key for signatures; want RSA of 2048"):
            Identities(config(path))


def test_a_private_key_in_the_set(tmp_path):
    """A set that gives the private key away still only verifies."""
    ours = Signer()
    private = ECAlgorithm.to_jwk(ours.key, as_dict=True)
    assert private["d"]
    known = identities(tmp_path / "jwks", {**private, "kid": ours.id})
    assert subject(known, ours.token()) == "dr.alder"


_JWK = st.dictionaries(
    st.sampled_from(["kty", "crv", "n", "e", "x", "y", "d", "k", "alg", "use", "kid", "key_ops"]),
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.lists(st.text(max_size=3))
    | st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "Ed448", "X25519", "AQAB",
                       "sig", "ES256", "RS256", "EdDSA", "secp256k1", "AAAA"]),
)  # fmt: skip


@pytest.mark.thorough
@settings(max_examples=500)
@given(st.lists(_JWK | st.integers() | st.none(), max_size=4), st.data())
def test_any_key_set(members, data):
    """Whatever members a set has, the good ones among them count, and the others do not."""
    good = Signer("ES256", "good", _EC).jwk()
    broken = Signer("RS256", "broken", RSA).jwk()
    broken[data.draw(st.sampled_from(["n", "e", "kty", "kid"]))] = data.draw(st.text(max_size=5))
    keys = Keys(json.dumps({"keys": [*members, broken, good]}).encode())
    assert keys.find("good", "ES256").public_numbers() == _EC.public_key().public_numbers()
    assert keys.find("good", "RS256") is None
    assert keys.find("good", "HS256") is None


_EC = ec.generate_private_key(ec.SECP256R1())


@settings(max_examples=300)
@given(st.binary(max_size=50) | st.text(alphabet='{}[]":,keys 0', max_size=40).map(str.encode))
def test_any_text(text):
    """Whatever a server answers, it is a key set or a KeysError."""
    with contextlib.suppress(KeysError):
        assert len(Keys(text)) == 0


def test_a_file_that_changes(tmp_path):
    """A new key counts, and the old one no more, within seconds of the file's change; tokens that
    were verified with the old one before are refused then too."""
    old, new = Signer(key_id="old"), Signer(key_id="new")
    path = tmp_path / "jwks.json"

    async def rotate():
        async with watched(identities(path, old)) as known:
            before = old.token()
            assert subject(known, before) == "dr.alder"
            assert refusal(known, new.token()) == "unknown_key"
            replace(path, jwks(old, new))
            assert await until(lambda: not refusal(known, new.token()))
            assert subject(known, before) == "dr.alder"
            replace(path, jwks(new))
            assert await until(lambda: refusal(known, before) == "unknown_key")
            assert refusal(known, old.token()) == "unknown_key"
            assert subject(known, new.token()) == "dr.alder"

    asyncio.run(rotate())


def test_a_key_replaced_under_its_id(tmp_path):
    """Where an issuer uses a key id again, the cache does not keep the old key's tokens."""
    old, new = Signer(), Signer()
    path = tmp_path / "jwks.json"

    async def rotate():
        async with watched(identities(path, old)) as known:
            before = old.token()
            assert subject(known, before) == "dr.alder"
            replace(path, jwks(new))
            assert await until(lambda: refusal(known, before) == "bad_signature")

    asyncio.run(rotate())


@pytest.mark.thorough
def test_a_file_that_breaks(tmp_path):
    """A file that is no key set any more leaves the last good one, until it is too old."""
    ours = Signer()
    path = tmp_path / "jwks.json"

    async def broken():
        known = identities(path, ours, refresh_seconds=1, max_age_seconds=3)
        async with watched(known):
            replace(path, "{")
            await asyncio.sleep(1.2)
            assert subject(known, ours.token()) == "dr.alder"
            path.unlink()
            assert await until(lambda: refusal(known, ours.token()) == "keys_unavailable")
            path.write_text(jwks(ours))
            assert await until(lambda: not refusal(known, ours.token()))

    asyncio.run(broken())


def test_all_keys_taken_back(tmp_path):
    """A set without keys takes all of them back: nothing is accepted, and the answer is 503."""
    ours = Signer()
    path = tmp_path / "jwks.json"

    async def empty():
        async with watched(identities(path, ours)) as known:
            token = ours.token()
            assert subject(known, token) == "dr.alder"
            replace(path, jwks())
            assert await until(lambda: refusal(known, token) == "keys_unavailable")

    asyncio.run(empty())


def test_a_url(server):
    """Keys come from a URL at the start; before it, there are none."""
    ours = Signer()
    server.serve(ours)

    async def fetched():
        known = Identities(config(server.url))
        assert refusal(known, ours.token()) == "keys_unavailable"
        async with watched(known):
            assert subject(known, ours.token()) == "dr.alder"

    asyncio.run(fetched())
    assert server.asked == 1


def test_a_url_that_is_down_at_the_start(server):
    """The start does not fail; every token is refused with 503 until the keys are there, also for
    an issuer whose server then answers something else than keys."""
    ours = Signer()
    server.serve(ours)
    server.down()

    async def late():
        async with watched(Identities(config(server.url))) as known:
            assert refusal(known, ours.token()) == "keys_unavailable"
            server.body = b"<html>"
            server.up()
            assert await until(lambda: server.asked > 1)
            assert refusal(known, ours.token()) == "keys_unavailable"
            server.serve(ours)
            assert await until(lambda: not refusal(known, ours.token()), 60)

    asyncio.run(late())


@pytest.mark.thorough
def test_a_url_that_goes_down_and_comes_back(server):
    """Known keys count while the URL is down, until they are too old; then 503; then, with the URL
    back, its keys of then."""
    old, new = Signer(key_id="old"), Signer(key_id="new")
    server.serve(old)

    async def outage():
        known = Identities(config(server.url, **QUICK, max_age_seconds=3))
        async with watched(known):
            token = old.token()
            assert subject(known, token) == "dr.alder"
            server.down()
            down = time.monotonic()
            while time.monotonic() < down + 1.5:
                assert subject(known, token) == "dr.alder"
                assert subject(known, old.token()) == "dr.alder"
                await asyncio.sleep(0.1)
            assert await until(lambda: refusal(known, token) == "keys_unavailable")
            assert refusal(known, old.token()) == "keys_unavailable"
            server.serve(new)
            server.up()
            assert await until(lambda: not refusal(known, new.token()))
            assert refusal(known, token) == "unknown_key"

    asyncio.run(outage())


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, b'{"keys": []}'), (404, b"{}"), (301, b""), (200, b"no"), (200, b"[" * 2_000_000)],
)
def test_answers_that_are_no_keys(server, status, body):
    """An error, a redirect, another document and one too large leave the known keys."""
    ours = Signer()
    server.serve(ours)

    async def wrong():
        async with watched(Identities(config(server.url, **QUICK))) as known:
            server.status, server.body = status, body
            server.headers = {"location": "/elsewhere"} if status == 301 else {}
            asked = server.asked
            assert await until(lambda: server.asked > asked + 1)
            assert subject(known, ours.token()) == "dr.alder"

    asyncio.run(wrong())


def test_an_unknown_key_is_fetched(server):
    """A token with a key that is not known is refused, and has the keys fetched in the background;
    with them it is accepted, long before the next regular fetch."""
    old, new = Signer(key_id="old"), Signer(key_id="new")
    server.serve(old)

    async def rotate():
        known = Identities(config(server.url, refresh_seconds=3600, unknown_key_seconds=0.2))
        async with watched(known):
            before = old.token()
            assert subject(known, before) == "dr.alder"
            server.serve(new)
            assert refusal(known, new.token()) == "unknown_key"
            assert await until(lambda: not refusal(known, new.token()))
            assert refusal(known, before) == "unknown_key"

    asyncio.run(rotate())


def test_unknown_keys_are_no_flood(server):
    """However many tokens name unknown keys, on however many threads, the issuer is asked at most
    once in the time that the configuration gives."""
    ours = Signer()
    server.serve(ours)
    token = ours.token({"kid": "unknown"})
    stop = threading.Event()

    async def flood():
        known = Identities(config(server.url, refresh_seconds=3600, unknown_key_seconds=1))

        def ask():
            while not stop.is_set():
                assert refusal(known, token) == "unknown_key"

        async with watched(known):
            begun = time.monotonic()
            with ThreadPoolExecutor(4) as pool:
                asking = [pool.submit(ask) for _ in range(4)]
                await asyncio.sleep(2.5)
                stop.set()
            for asked in asking:
                asked.result()
            assert 2 <= server.asked <= 2 + (time.monotonic() - begun)

    asyncio.run(flood())


def test_regular_fetches(server):
    """Without any unknown key, a key that the issuer took back is gone after the next fetch."""
    old, new = Signer(key_id="old"), Signer(key_id="new")
    server.serve(old, new)

    async def rotate():
        async with watched(Identities(config(server.url, **QUICK))) as known:
            token = old.token()
            assert subject(known, token) == "dr.alder"
            server.serve(new)
            assert await until(lambda: refusal(known, token) == "unknown_key")

    asyncio.run(rotate())


@pytest.mark.thorough
def test_threads_while_the_keys_change(tmp_path):
    """While a set is replaced again and again, a key that is in all of them always counts, and
    one that is in none never."""
    stays, comes, never = Signer(key_id="a"), Signer(key_id="b"), Signer(key_id="a")
    path = tmp_path / "jwks.json"
    stop = threading.Event()

    async def rotate():
        known = identities(path, stays, identity={"cache_entries": 2})

        def work(seed):
            while not stop.is_set():
                assert subject(known, stays.token(sub=f"s{seed}")) == f"s{seed}"
                assert refusal(known, never.token(sub="root")) == "bad_signature"
                assert refusal(known, comes.token()) in ("", "unknown_key")

        async with watched(known):
            with ThreadPoolExecutor(3) as pool:
                working = [pool.submit(work, n) for n in range(3)]
                for turn in range(4):
                    replace(path, jwks(stays, comes) if turn % 2 else jwks(stays))
                    await asyncio.sleep(0.8)
                stop.set()
            for done in working:
                done.result()

    asyncio.run(rotate())


def test_nothing_to_watch():
    """Without issuers, watching goes on until it is cancelled, as a server's loops must."""
    values = config("https://idp.example/keys").model_copy(
        update={"issuers": (), "sources": ("mtls",)}
    )

    async def idle():
        async with watched(Identities(values)):
            await asyncio.sleep(0.05)

    asyncio.run(idle())


def test_reading_after_the_loop_has_ended(server):
    """A thread that still reads when the loop is gone gets a refusal, no error."""
    ours = Signer()
    server.serve(ours)
    known = Identities(config(server.url))

    async def once():
        async with watched(known):
            pass

    asyncio.run(once())
    assert subject(known, ours.token()) == "dr.alder"
    assert refusal(known, ours.token({"kid": "x"})) == "unknown_key"


def test_no_key_is_quoted(tmp_path, capsys):
    """What is logged of a key set quotes nothing of it."""
    path = tmp_path / "jwks.json"
    path.write_text(jwks(Signer(), {"kty": "oct", "k": "marker", "kid": "marker"}))
    Identities(config(path))
    path.write_text('{"keys": "marker"}')
    with pytest.raises(UsageError) as raised:
        Identities(config(path))
    assert "marker" not in str(raised.value) + capsys.readouterr().out
