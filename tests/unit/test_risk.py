"""Risk: findings are a fold over the log at the receiver, and the policy is shown them."""

import asyncio
import contextlib
import json

import grpc
import pytest
from check_world import ALLOW, Call
from check_world import World as CheckWorld
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import TestLog
from streams import FAR, Receiver, Writer, now_us, opening, until

from authz.blocks import Blocks, Standing, block_notice
from authz.detect.detector import Finding
from authz.detect.record import finding_record
from authz.errors import UsageError
from authz.ledger import Checkpoint, tree_hash
from authz.policy.cache import CachedEngine
from authz.policy.engine import Decisions
from authz.policy.rego_ast import Reads
from authz.receiver.state import State, state_after
from authz.record import notice
from authz.store.epochs import Ended
from authz.v1 import stream_pb2 as pb

NOW = 1_700_000_000_000_000
HOUR = 3600 * 1_000_000
DAY = 24 * HOUR
ORIGIN = "o"


def raised(subject, lane="act", rule="bulk_read", score=6.25):
    """The record that `authz watch` makes of a finding."""
    finding = Finding(
        time=NOW, subject=subject, tenant="", address="", rule=rule, cause=rule, lane=lane,
        score=score, evidence="200 charts in an hour; usual: 12", records=("o@1",),
    )  # fmt: skip
    return finding_record(finding)


def word(event, id_, by="officer"):
    """What a person says of a finding."""
    record = notice(f"finding_{event}", NOW, {"by": by}, records=[id_])
    return record | {"subject": "a", "reason": "a consult"}


def at(record, index, sealed_at=NOW):
    return record | {"origin": ORIGIN, "index": index, "sealed_at": sealed_at}


def fold(*records):
    return Standing().after(list(records))


def told(standing, now=NOW, hours=24.0):
    """Each finding's id, with its end, as writers are told."""
    return {one.ids[0]: one.until_us for one in standing.message(now, hours).risk}


def writer_of(directory, *records, now=NOW):
    """A writer that was told of these records, numbered from 0."""
    blocks = Blocks.load(directory / "blocks.json")
    blocks.replace(fold(*(at(record, n) for n, record in enumerate(records))).message(now))
    return blocks


def test_a_finding_is_in_force_for_its_hours():
    """From when it came into the log, for as long as the receiver is set to."""
    standing = fold(at(raised("a"), 3))
    assert told(standing) == {"o@3": NOW + DAY}
    assert told(standing, NOW + DAY - 1)
    assert told(standing, NOW + DAY) == {}
    assert told(standing, hours=0.5) == {"o@3": NOW + HOUR // 2}
    assert told(standing, hours=0) == {}
    assert standing.version == 4


def test_the_last_word_counts():
    """Explained ends a finding, confirmed begins its hours anew, acknowledged changes nothing."""
    standing = fold(at(raised("a"), 0), at(raised("b"), 1))
    later = NOW + 5 * HOUR
    assert standing.after([at(word("acknowledged", "o@0"), 2, later)]) is standing
    explained = standing.after([at(word("explained", "o@0"), 2, later)])
    assert told(explained, later) == {"o@1": NOW + DAY}
    confirmed = explained.after([at(word("confirmed", "o@0"), 3, later)])
    assert told(confirmed, later) == {"o@0": later + DAY, "o@1": NOW + DAY}
    assert (explained.version, confirmed.version) == (3, 4)
    [a] = [one for one in confirmed.message(later).risk if one.subject == "a"]
    assert a.since_us == NOW, "when it was raised"


@pytest.mark.parametrize(
    "record",
    [
        raised(""),
        raised("a", lane=""),
        raised("a", lane="budget"),
        raised("a") | {"kind": "notice"},
        raised("a") | {"event": "sealed"},
        word("explained", "o@7"),
        word("explained", "o@0") | {"kind": "finding"},
        word("explained", "o@0") | {"records": []},
        word("explained", "o@0") | {"records": "o@0"},
        word("shrugged", "o@0"),
        {"kind": "decision", "event": "raised", "subject": "a", "lane": "act"},
    ],
)
def test_what_changes_nothing(record):
    """Who is not named, lanes and words that nobody knows, findings that are not there."""
    before = fold(at(raised("a"), 0))
    assert before.after([at(record, 1)]) is before


def test_what_is_long_over_is_forgotten():
    """A finding can be confirmed for two weeks; then the set does not hold it any more."""
    standing = fold(at(raised("a"), 0))
    inside = standing.after([at(word("confirmed", "o@0"), 1, NOW + 13 * DAY)])
    assert told(inside, NOW + 13 * DAY)
    beyond = standing.after([at(raised("b"), 1, NOW + 14 * DAY)])
    assert set(beyond.findings) == {"o@1"}
    confirmed = beyond.after([at(word("confirmed", "o@0"), 2, NOW + 14 * DAY)])
    assert confirmed is beyond


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("act", "review", "explained", "confirmed", "acknowledged", "other", "block", "seal",
             "finish", "restart")
        ),
        st.integers(0, 3),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=60)
@given(STEPS)
def test_a_fold_over_the_log(tmp_path_factory, steps):
    """Whatever was sealed, stored, trimmed or restarted in between, those findings are told that
    were raised and not explained since."""
    log = TestLog(tmp_path_factory.mktemp("log"))
    expected, found, batch, count = {}, {}, None, 0
    for step, number in steps:
        named = list(found)[number % len(found)] if found else "test/receiver@9999"
        if step in ("act", "review"):
            id_ = f"test/receiver@{count}"
            expected[id_] = found[id_] = (f"s{number}", step)
            log.append([raised(f"s{number}", step)])
        elif step in ("explained", "confirmed", "acknowledged"):
            log.append([word(step, named)])
            if step == "explained":
                expected.pop(named, None)
            elif step == "confirmed" and found:
                expected[named] = found[named]
        elif step == "other":
            log.append([{"kind": "access", "subject": "s1", "lane": "act", "event": "raised"}])
        elif step == "block":
            log.append([block_notice(f"s{number}", FAR, "r", "admin", NOW)])
        elif step == "seal":
            batch = batch or log.log.seal(3)
        elif step == "finish" and batch:
            log.log.finish(batch)
            batch = None
        elif step == "restart":
            log.restart()
            batch = None
        count = log.journal.next
        risk = log.log.blocks.message(now_us()).risk
        assert {one.ids[0]: (one.subject, one.lane) for one in risk} == expected
    log.close()
    log.writer_journal.close()


def test_a_write_that_failed_tells_nobody(tmp_path):
    """A finding that could not be made durable is not in force."""
    log = TestLog(tmp_path)
    log.log.frame([[(raised("a"), b"")]], log.journal.next)
    log.append([{"kind": "access"}])
    assert log.log.blocks.findings == {}
    log.close()
    log.writer_journal.close()


def test_state_of_findings():
    """The state keeps them; one from before there were any has none, and a version that knows none
    reads one of today."""
    standing = fold(at(raised("a"), 0), at(word("explained", "o@0"), 1), at(raised("b"), 2))
    data = State(blocks=standing).to_json()
    assert State.from_json(data).blocks == standing
    content = json.loads(data)
    assert len(content["blocks"]) == 2, "as that version unpacks it"
    del content["findings"]
    assert State.from_json(json.dumps(content).encode()).blocks.findings == {}
    for bad in ([[]], [5], 5, [["i", "s", "act", "r", 1, 2, "3", False]], [[1] * 8]):
        content["findings"] = bad
        with pytest.raises((TypeError, ValueError)):
            State.from_json(json.dumps(content).encode())


def test_a_log_that_follows_knows_them():
    """A log that goes on from a lost one tells what was found there."""
    before = [at(raised("a"), 0), at(raised("b"), 1), at(word("explained", "o@1"), 2)]
    ended = Ended(Checkpoint(ORIGIN, 3, tree_hash([])), "n", NOW, [], before)
    assert set(told(state_after(ended).blocks)) == {"o@0"}


def test_what_a_policy_sees(tmp_path):
    """All that is in force on one person: the worst lane, the highest score, the newest time, the
    last end, in seconds; of nobody else, and nothing when it is over."""
    blocks = Blocks.load(tmp_path / "blocks.json")
    records = [
        at(raised("a", "act", "bulk_read", 6.25), 0),
        at(raised("a", "review", "off_hours", 7.5), 1, NOW + 2 * HOUR),
        at(raised("b", "review", "denials", 3), 2, NOW + 2 * HOUR),
    ]
    assert blocks.risk(["a"], NOW) is None
    blocks.replace(fold(*records).message(NOW))
    seconds = NOW // 1_000_000
    assert blocks.risk(["a"], NOW) == {
        "lane": "act", "rules": ["bulk_read", "off_hours"], "score": 7.5,
        "since": seconds + 7200, "until": seconds + 26 * 3600, "findings": ["o@0", "o@1"],
    }  # fmt: skip
    assert blocks.risk(["a"], NOW + DAY) == {
        "lane": "review", "rules": ["off_hours"], "score": 7.5,
        "since": seconds + 7200, "until": seconds + 26 * 3600, "findings": ["o@1"],
    }, "the other one is over"  # fmt: skip
    assert blocks.risk(["a"], NOW + 26 * HOUR) is None
    assert blocks.risk(["b"], NOW)["rules"] == ["denials"]
    assert blocks.risk(["A", "", "c"], NOW) is None
    assert blocks.risk(["b", "c", "b"], NOW) == blocks.risk(["b"], NOW)
    assert blocks.risk(["b", "a"], NOW)["findings"] == ["o@0", "o@1", "o@2"], "two names of one"


def test_a_lane_that_is_not_known_is_the_worst(tmp_path):
    """What a newer receiver says is not taken for harmless."""
    blocks = Blocks.load(tmp_path / "blocks.json")
    blocks.replace(pb.Blocks(risk=[pb.Risk(subject="a", lane="panic", until_us=FAR)]))
    assert blocks.risk(["a"], NOW)["lane"] == "act"


def test_file(tmp_path):
    """The next process knows what the last one did; a file from before there was risk loads, and a
    version that knows none finds its blocks in today's."""
    told_before = writer_of(tmp_path, raised("a\u2028é"), block_notice("b", FAR, "r", "x", NOW))
    path = tmp_path / "blocks.json"
    again = Blocks.load(path)
    assert again.risk(["a\u2028é"], NOW) == told_before.risk(["a\u2028é"], NOW) is not None
    content = json.loads(path.read_bytes())
    assert content["blocks"] == [["b", FAR, "r", "o/1"]]
    del content["risk"]
    path.write_text(json.dumps(content))
    assert Blocks.load(path).risk(["a\u2028é"], NOW) is None
    assert Blocks.load(path).find("b", NOW)


@pytest.mark.parametrize(
    "rows",
    [5, [5], [[]], {"a": 1}, [["a", "act", ["r"], 1, 2, 3]], [["a", "act", "r", 1, 2, 3, ["i"]]],
     [["a", "act", ["r"], 1, 2, None, ["i"]]], [["a", "act", ["r"], 1, 2, True, ["i"]]],
     [["a", "act", [7], 1, 2, 3, ["i"]]], [[None, "act", ["r"], 1, 2, 3, ["i"]]]],
)  # fmt: skip
def test_damaged_file(tmp_path, rows):
    """A file that is damaged stops the start with its mend."""
    path = tmp_path / "blocks.json"
    path.write_text(json.dumps({"version": 1, "blocks": [], "risk": rows}))
    with pytest.raises(UsageError, match=r"blocks\.json.*delete it"):
        Blocks.load(path)


# Peers of another version, over real streams.


def older():
    """The messages as they were before `risk`."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    [blocks] = [message for message in file.message_type if message.name == "Blocks"]
    [risk] = [field for field in blocks.field if field.name == "risk"]
    blocks.field.remove(risk)
    file.message_type.remove(next(one for one in file.message_type if one.name == "Risk"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message = pool.FindMessageTypeByName("authz.v1.FromReceiver")
    return message_factory.GetMessageClass(message)


def test_an_older_writer(tmp_path):
    """A writer that knows no risk gets its blocks from a receiver that tells some."""
    told_older = older()

    async def run():
        async with Receiver(tmp_path) as receiver, Writer(tmp_path / "w", receiver.address) as w:
            w.write((raised("a"), b""), (block_notice("b", FAR, "r", "x", 1), b""))
            await until(lambda: w.blocked("b"))
            async with opening(receiver.address)() as channel:
                call = channel.stream_stream(
                    "/authz.v1.RecordStream/Write",
                    request_serializer=pb.FromWriter.SerializeToString,
                    response_deserializer=told_older.FromString,
                )()
                hello = pb.Hello(writer="old", public_key=bytes(32), first_seq=1)
                await call.write(pb.FromWriter(hello=hello))
                assert (await call.read()).welcome.origin
                blocks = (await call.read()).blocks
                assert not hasattr(blocks, "risk")
                assert [(block.subject, block.until_us) for block in blocks.blocks] == [("b", FAR)]

    asyncio.run(run())


def test_an_older_receiver(tmp_path):
    """A receiver that knows no risk tells blocks to a writer that does: they are in force, and
    there is no risk."""
    message = older()()
    message.blocks.version = 7
    message.blocks.blocks.add(subject="b", until_us=FAR, reason="r", id="o/1")

    async def write(messages, _context):
        await anext(messages)
        yield pb.FromReceiver(welcome=pb.Welcome(origin="o")).SerializeToString()
        yield message.SerializeToString()
        async for _ in messages:
            pass

    async def run():
        handler = grpc.stream_stream_rpc_method_handler(write, pb.FromWriter.FromString)
        server = grpc.aio.server()
        handlers = {"Write": handler}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("authz.v1.RecordStream", handlers),)
        )
        server.add_insecure_port(f"unix://{tmp_path}/r")
        await server.start()
        async with Writer(tmp_path / "w", f"unix://{tmp_path}/r") as w:
            await until(lambda: w.blocked("b"))
            assert w.blocks.risk(["b"], now_us()) is None
        await server.stop(0)

    asyncio.run(run())


def test_findings_reach_every_writer(tmp_path):
    """Whoever writes a finding, all writers have it at once, also who connects later, and hear of
    what becomes of it; without a receiver it stays, also after a restart."""

    def knows(writer, subject="a"):
        return writer.blocks.risk([subject], now_us())

    async def run():
        async with contextlib.AsyncExitStack() as stack:
            receiver = await stack.enter_async_context(Receiver(tmp_path))
            first = await stack.enter_async_context(Writer(tmp_path / "a", receiver.address))
            await until(lambda: first.versions)
            teller = await stack.enter_async_context(Writer(tmp_path / "t", receiver.address))
            teller.write((raised("a"), b""))
            await until(lambda: knows(first) and knows(teller))
            late = await stack.enter_async_context(Writer(tmp_path / "l", receiver.address))
            await until(lambda: knows(late))
            [id_] = knows(late)["findings"]
            teller.write((word("explained", id_), b""))
            for writer in (first, late):
                await until(lambda writer=writer: not knows(writer))
            teller.write((raised("b"), b""))
            await until(lambda: knows(first, "b"))
        async with Writer(tmp_path / "a", receiver.address) as again:
            assert knows(again, "b")

    asyncio.run(run())


def test_the_receivers_hours(tmp_path):
    """`receiver.risk_hours` is how long; none at all tells nobody."""

    async def run(hours):
        directory = tmp_path / str(hours)
        directory.mkdir()
        receiver = Receiver(directory, risk_hours=hours)
        async with receiver, Writer(directory / "w", receiver.address) as w:
            w.write((raised("a"), b""), (block_notice("b", FAR, "r", "x", 1), b""))
            await until(lambda: w.blocked("b"))
            return w.blocks.risk(["a"], now_us())

    assert asyncio.run(run(0)) is None
    risk = asyncio.run(run(1))
    assert risk["until"] == risk["since"] + 3600


# What a Check makes of it.


@pytest.fixture
def world(tmp_path):
    world = CheckWorld(tmp_path)
    world.asked = []
    world.engine.decide_one = lambda document: world.asked.append(document) or ALLOW
    world.blocks = world.service._judge._blocks
    yield world
    world.close()


class Named(Call):
    """A Check of somebody whose token Envoy has verified."""

    def __init__(self, subject):
        super().__init__()
        request = CheckRequest.FromString(self.request)
        metadata = request.attributes.metadata_context.filter_metadata
        metadata["envoy.filters.http.jwt_authn"].update({"verified_jwt": {"sub": subject}})
        self.request = request.SerializeToString()


def tell(world, *records):
    standing = fold(*(at(record, n, now_us()) for n, record in enumerate(records)))
    world.blocks.replace(standing.message(now_us()))


def test_a_check_shows_the_policy(world):
    """`input.authz.risk` is there for whom something was found, and for nobody else; a block goes
    before it."""
    world.handle(Named("elm"))
    tell(world, raised("elm"), raised("oak"), block_notice("oak", FAR, "r", "x", NOW))
    elm, ash, oak = world.handle(Named("elm"), Named("ash"), Named("oak"))
    assert (elm.status, ash.status, oak.status) == (200, 200, 403)
    before, first, second = world.asked
    assert "authz" not in before
    assert "authz" not in second
    assert first["authz"]["risk"]["rules"] == ["bulk_read"]
    assert set(first["authz"]) == {"risk"}


def test_a_name_that_only_the_policy_knows(world):
    """Who is recorded by a name that the policy gives is found by it too: the policy is asked again
    before it is believed, and only then."""

    def decide(document):
        world.asked.append(document)
        if "risk" in document.get("authz", {}):
            return {"allowed": False, "audit": {"subject": "ash", "reason": "at risk"}}
        return ALLOW

    world.engine.decide_one = decide
    tell(world, raised("elm"))
    assert world.handle(Call())[0].status == 200
    assert len(world.asked) == 1
    tell(world, raised("ash"))
    [call] = world.handle(Call())
    assert call.status == 403
    assert len(world.asked) == 3
    assert [record["reason"] for record in world.records(call)] == ["at risk"]


def test_the_cache_does_not_answer_across_a_change(world):
    """A decision from before a finding is not given after it, nor the other way round."""

    class Engine:
        revision = "r"
        reads = Reads(frozenset(), frozenset())
        most = 16
        asked = 0

        def decide(self, documents, until):
            self.asked += len(documents)
            outcomes = [{"allowed": "authz" not in document} for document in documents]
            return Decisions("r", outcomes)

    engine = Engine()
    world.service._engine = CachedEngine(engine)
    tell(world)
    statuses = [world.handle(Named("elm"))[0].status for _ in range(3)]
    assert (statuses, engine.asked) == ([200] * 3, 1), "from the cache"
    tell(world, raised("elm"))
    statuses = [world.handle(Named("elm"))[0].status for _ in range(3)]
    assert (statuses, engine.asked) == ([403] * 3, 2)
    tell(world)
    assert world.handle(Named("elm"))[0].status == 200
