"""What is sealed from memory is what is in the journal, whatever was held and let go."""

from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logs import TestLog

from authz.receiver import recent
from authz.record import canonical


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_from_memory_or_from_the_journal(tmp_path_factory, monkeypatch, seed):
    """Groups of any size, sealed in batches of any size, over restarts and with hardly any room in
    memory: each record is sealed once, in order, with its leaf and its attachment."""
    random = Random(seed)
    monkeypatch.setattr(recent, "MOST", random.choice((0, 1, 7, 40, 10_000)))
    monkeypatch.setattr(recent, "_MOST_BYTES", random.choice((0, 2000, 1 << 20)))
    monkeypatch.setattr("authz.receiver.sequence._BATCH_BYTES", random.choice((500, 4000, 1 << 20)))
    log = TestLog(tmp_path_factory.mktemp("log"))
    sent, sealed = 0, 0
    for _ in range(random.randint(1, 25)):
        match random.randrange(4):
            case 0 | 1:
                count = random.choice((1, 2, 5, 30))
                entries = [
                    ({"kind": "access", "reason": str(sent + n)}, b"x" * random.choice((0, 0, 300)))
                    for n in range(count)
                ]
                log.append_entries(entries)
                sent += count
            case 2:
                batch = log.log.seal(random.choice((1, 3, 10, 100)))
                if batch is None:
                    assert sealed == sent
                    continue
                assert batch.first == sealed
                for record, leaf in zip(batch.records, batch.leaves, strict=True):
                    assert record["reason"] == str(sealed)
                    assert record.get("index", 0) == sealed
                    assert leaf == canonical(record)
                    sealed += 1
                assert all(carried for _, carried in batch.attachments)
                log.log.finish(batch)
            case _:
                log.restart()
    log.end()
