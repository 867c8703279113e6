"""Answers that come in pieces, coded, large, cut or hostile."""

import gzip
import json
import random
import string
import tracemalloc
import zlib
from collections.abc import Iterator

import orjson
import pytest
from answers import CODINGS, FHIR, NDJSON, bundle, observation, raw_deflate, seen
from hypothesis import given
from hypothesis import strategies as st

from authz.disclosure import Answer, Reading, Rule, bodies
from authz.disclosure.coding import STEP

RULED = Reading(rules=[Rule("/r", ("$..id", "$.a[*].b"))])
MIB = 1024 * 1024

texts = st.text(max_size=12) | st.sampled_from(
    ["{[", '"', "\\", '\\"', "entry", "Patient/1", "é☃\U0001f9ea"]
)
ids = st.text(string.ascii_letters + string.digits + "-.", min_size=1, max_size=9)
kinds = st.sampled_from(["Observation", "Encounter", "Appointment", "Device", "Nonsense"])
references = st.one_of(
    st.builds("Patient/{}".format, ids),
    st.builds("https://x/fhir/Patient/{}/_history/2".format, ids),
    st.builds("Practitioner/{}".format, ids),
    st.builds("urn:uuid:{}".format, st.integers(0, 4)),
)
resources = st.one_of(
    st.fixed_dictionaries({"resourceType": st.just("Patient"), "id": ids, "name": texts}),
    st.builds(
        lambda kind, reference, note: {
            "note": [{"text": note}],
            "resourceType": kind,
            "subject": {"reference": reference, "display": note},
            "value": 12345678901234567890123,
        },
        kinds,
        references,
        texts,
    ),
)
entries = st.builds(
    lambda number, resource: {"fullUrl": f"urn:uuid:{number}", "resource": resource},
    st.integers(0, 4),
    resources,
)
bundles = st.builds(
    lambda entries, note: {"resourceType": "Bundle", "note": note, "entry": entries, "after": note},
    st.lists(entries, max_size=8),
    texts,
)
cuts = st.lists(st.integers(0, 5000), max_size=12)


@pytest.fixture
def small(monkeypatch):
    """Bundles are read entry by entry from 40 bytes on, so that short ones are."""
    monkeypatch.setattr(bodies, "SMALL", 40)


def expected(given_bundle):
    """The oracle: the ids in order, found with the whole bundle at hand."""
    found = []
    for entry in given_bundle["entry"]:
        resource = entry["resource"]
        reference = resource.get("subject", {}).get("reference", "")
        if resource["resourceType"] == "Patient":
            found.append(resource["id"])
        if "Patient/" in reference:
            found.append(reference.partition("Patient/")[2].partition("/")[0])
    return tuple(dict.fromkeys(found))


@given(bundles, cuts, st.sampled_from(sorted(CODINGS)))
def test_any_pieces(given_bundle, places, coding):
    """However a body is cut into pieces, and however coded, the same is found."""
    body = json.dumps(given_bundle).encode()
    whole = seen(body)
    assert whole.patients == expected(given_bundle)
    headers = {"content-encoding": coding}
    assert seen(CODINGS[coding](body), headers=headers, cuts=places) == whole
    assert seen(CODINGS[coding](body), headers=headers, cuts=range(len(body))) == whole


@given(bundles, cuts, st.booleans(), st.sampled_from(["", "gzip", "deflate"]))
def test_entry_by_entry(given_bundle, places, spaced, coding):
    """A Bundle that is read entry by entry gives what it gives when it is read whole."""
    body = json.dumps(given_bundle, indent=2 if spaced else None, ensure_ascii=spaced).encode()
    whole = seen(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "SMALL", 40)
        headers = {"content-encoding": coding}
        assert seen(CODINGS[coding](body), headers=headers, cuts=places) == whole
        assert seen(CODINGS[coding](body), headers=headers, cuts=range(len(body))) == whole


@given(st.lists(resources, max_size=6), cuts, st.booleans())
def test_lines(given_resources, places, ended):
    """JSON a line gives what a Bundle of the same resources gives."""
    body = b"\n".join(orjson.dumps(resource | {"value": 1}) for resource in given_resources)
    found = seen(body + b"\r\n\n" * ended, NDJSON, cuts=places)
    assert found == seen(bundle(*given_resources))


@given(bundles.filter(expected), st.integers(0, 10_000), st.sampled_from(["", "gzip", "deflate"]))
def test_truncated(given_bundle, place, coding):
    """A body that ends early is never complete without all its patients, nor names others."""
    body = CODINGS[coding](json.dumps(given_bundle).encode())
    headers = {"content-encoding": coding} if coding else {}
    short = body[: 1 + place % (len(body) - 1)]
    for small_size in (40, bodies.SMALL):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bodies, "SMALL", small_size)
            for found in (
                seen(short, headers=headers, cuts=[place // 2]),
                seen(short, headers={**headers, "content-length": str(len(body))}),
                seen(short, headers=headers, cut=True),
            ):
                assert set(found.patients) <= set(expected(given_bundle))
                assert not found.complete or found.patients == expected(given_bundle)
            assert found.trouble in {"cut", "reference"}


@given(st.lists(resources, min_size=1, max_size=6), st.integers(0, 10_000))
def test_truncated_lines(given_resources, place):
    """Lines that end early are cut, also between two lines."""
    body = b"".join(orjson.dumps(resource | {"value": 1}) + b"\n" for resource in given_resources)
    short = body[: place % len(body)]
    assert not seen(short, NDJSON, cut=True).complete
    assert not short or not seen(short, NDJSON, headers={"content-length": str(len(body))}).complete


def test_lines_that_end_early_between_two():
    """Whole lines that are fewer than the length that was declared are cut."""
    line = json.dumps(observation(1)).encode() + b"\n"
    found = seen(line, NDJSON, headers={"content-length": str(2 * len(line))})
    assert (found.patients, found.trouble) == (("1",), "cut")
    assert seen(line, NDJSON, headers={"content-length": str(len(line))}).complete


def test_whole_entries_of_a_cut_answer():
    """What was shown before the cut is named."""
    body = json.dumps(bundle(*(observation(n) for n in range(3)))).encode()
    found = seen(body[:-40], cut=True)
    assert (found.patients, found.trouble) == (("0", "1"), "cut")
    large = json.dumps(bundle(*(observation(n, note="x" * 400) for n in range(1000)))).encode()
    found = seen(large[:-40], cut=True)
    assert (len(found.patients), found.trouble) == (999, "cut")


@pytest.mark.parametrize("coding", sorted(CODINGS))
def test_five_thousand_entries(coding):
    """A Bundle of 5,000 entries names 5,000 patients, however coded."""
    body = json.dumps(bundle(*(observation(n, note="x" * 100) for n in range(5000)))).encode()
    found = seen(
        CODINGS[coding](body), headers={"content-encoding": coding}, cuts=range(0, len(body), 9999)
    )
    assert found.patients == tuple(map(str, range(5000)))
    assert (found.types, found.trouble) == ({"Observation": 5000}, "")


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, br", "gzip, gzip, gzip", "?"])
def test_codings_that_are_not_read(coding):
    """A coding we cannot take off is told."""
    assert seen(b"abc", headers={"content-encoding": coding}).trouble == "encoding"


def test_what_a_decoder_still_holds():
    """Output that is left when all of the input is taken is not forgotten."""
    for size in range(STEP - 300, STEP + 300):
        body = json.dumps(observation(1)).encode().ljust(size)
        for coded in (raw_deflate(body), zlib.compress(body)):
            assert seen(coded, headers={"content-encoding": "deflate"}).complete


@pytest.mark.parametrize("coding", sorted(CODINGS))
@pytest.mark.parametrize("content_type", [FHIR, NDJSON])
def test_nothing_coded(coding, content_type):
    """A coding around nothing shows nobody."""
    found = seen(CODINGS[coding](b""), content_type, headers={"content-encoding": coding})
    assert (found.patients, found.types, found.trouble) == ((), {}, "")


def test_broken_codings():
    """What does not decode, or goes on after its end, is told."""
    packed = gzip.compress(json.dumps(observation(1)).encode())
    for broken in (
        b"abc",
        packed[:12] + b"\xff" + packed[13:],
        packed + b"more",
        packed[:-1] + b"?",
    ):
        assert seen(broken, headers={"content-encoding": "gzip"}).trouble == "encoding"
    for broken in (zlib.compress(b"{}") + b"x", raw_deflate(b"{}") + b"x", b"\xff\xff\xff"):
        assert seen(broken, headers={"content-encoding": "deflate"}).trouble == "encoding"
    for short in (packed[:-1], packed[:1], packed + b"\x1f"):
        assert seen(short, headers={"content-encoding": "gzip"}).trouble == "cut"


def peak(pieces: Iterator[bytes], content_type: str, **headers: str):
    """What is found, and the most memory that the reading held, in MiB."""
    reading = Reading()
    tracemalloc.start()
    answer = Answer(reading, 200, {"content-type": content_type, **headers})
    for piece in pieces:
        answer.feed(piece)
    found = answer.finish()
    held = tracemalloc.get_traced_memory()[1] / MIB
    tracemalloc.stop()
    assert found.trouble != "internal_error"
    return found, held


def large(mib: int, before: bytes, between: bytes, after: bytes) -> Iterator[bytes]:
    resource = orjson.dumps(observation(1, note="x" * 5000))
    filler = orjson.dumps({"resource": resource.decode()})
    entry = b'{"resource":' + resource + b"}" if between == b"," else resource
    count = mib * MIB // len(filler)
    yield before
    for number in range(count):
        yield (between if number else b"") + entry
    yield after


@pytest.mark.parametrize("mib", [5, 15])
def test_memory_is_flat(mib):
    """Whatever the length of an answer, reading it holds a small part of it."""
    found, held = peak(large(mib, b'{"resourceType":"Bundle","entry":[', b",", b"]}"), FHIR)
    assert (found.patients, found.trouble) == (("1",), "")
    assert held < 2.5
    found, held = peak(large(mib, b"", b"\n", b"\n"), NDJSON)
    assert (found.patients, found.trouble) == (("1",), "")
    assert held < 2.5


def test_bombs():
    """A coding that makes much out of little is refused, and never unpacked in memory."""
    packed = zlib.compress(bytes(100 * MIB), 9)
    found, held = peak(iter([packed]), FHIR, **{"content-encoding": "deflate"})
    assert found.trouble == "encoding"
    assert held < 8
    twice = gzip.compress(gzip.compress(b" " * 100 * MIB))
    found, held = peak(iter([twice]), NDJSON, **{"content-encoding": "gzip, gzip"})
    assert found.trouble == "encoding"
    assert held < 8


def test_bounds():
    """What is beyond the bounds is told, with what was found before."""
    reading = Reading(max_bytes=MIB)
    body = json.dumps(bundle(*(observation(n, note="x" * 1000) for n in range(1500)))).encode()
    found = seen(body, reading=reading, cuts=range(0, len(body), 5000))
    assert found.trouble == "too_large"
    assert found == seen(body, reading=reading)
    assert 900 < len(found.patients) < 1100
    assert seen({"a": "x" * 5 * MIB}).trouble == "too_large"
    assert seen(observation(1, note="x" * 3 * MIB)).patients == ("1",)


def test_one_large_entry():
    """An entry that is too large to be held is told, and the others are read; so are lines."""
    resources = [observation(1), observation(2, note="x" * 5 * MIB), observation(3)]
    body = json.dumps(bundle(*resources)).encode()
    found = seen(body)
    assert (found.patients, found.trouble) == (("1", "3"), "too_large")
    found = seen(b"\n".join(map(orjson.dumps, resources)), NDJSON)
    assert (found.patients, found.trouble) == (("1", "3"), "too_large")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b'{"resourceType":"Bundle","entry":[' + b"[" * 1_000_000,
        b'{"resourceType":"Bundle","entry":[' + b"[" * 3 * MIB + b"]" * 3 * MIB + b"]}",
        b'{"resourceType":"Bundle","entry":[{"resource":' * 50_000,
        b'{"resourceType":"Bundle","entry":[]' + b"}" * 1_000_000,
        b'{"resourceType":"Bundle","entry":[' + b'{"a":{"b":[}]},' * 30_000,
        b'{"resourceType":"Bundle","entry":[' + b'"' * 500_001,
        b'{"resourceType":"Observation","subject":' + b"[" * 2000 + b"]" * 2000 + b"}",
        b"\xff\xfe{\x00}\x00",
        b" ",
    ],
)
def test_hostile_shapes(body):
    """Depth without end, and brackets that do not match, are malformed."""
    assert seen(body).trouble == "malformed"
    assert seen(body, cuts=range(0, len(body), 4096)).trouble == "malformed"


def test_lines_that_are_not_json():
    """Lines that are not JSON do not hide those around them; after many, nothing more is read."""
    line = json.dumps(observation(1)).encode() + b"\n"
    other = json.dumps(observation(2)).encode()
    found = seen(b"{\n" + line + b"?\n" * 50 + other, NDJSON)
    assert (found.patients, found.trouble) == (("1", "2"), "malformed")
    assert seen(line + b"?\n" * 5000 + other, NDJSON).patients == ("1",)


def test_nested_bundles():
    """Bundles in bundles are read to a depth, and malformed below."""
    inner = observation(1)
    for _ in range(4):
        inner = bundle(inner)
    assert seen(inner).patients == ("1",)
    for _ in range(100):
        inner = bundle(inner)
    assert seen(inner).trouble == "malformed"


def test_head_that_is_not_so(small):
    """A body that begins like a Bundle and is none is malformed, whatever was found."""
    filler = "x" * 100
    inner = {"contained": [{"resourceType": "Bundle", "a": filler}], "resourceType": "List"}
    assert seen(inner).trouble == "malformed"
    twice = b'{"resourceType":"Bundle","entry":[],"a":"' + b"x" * 50 + b'","resourceType":"List"}'
    assert seen(twice).trouble == "malformed"
    for entry in (b"null", b"0", b'""', b"true", b"[]"):
        start = b'{"resourceType":"Bundle","a":"' + b"x" * 50 + b'","entry":[{"resource":{'
        assert seen(start + b'"resourceType":"Group"}},' + entry + b"]}").trouble == "malformed"
    for end in (b"", b"]", b"}", b"]}x", b",]}", b"]]}"):
        start = b'{"resourceType":"Bundle","a":"' + b"x" * 50 + b'","entry":[{"resource":{}}'
        assert seen(start + end).trouble == "malformed"


@pytest.mark.parametrize("number", ["9" * 30, "9" * 9000, "1e999999", "1e-99999999999999999999"])
@pytest.mark.parametrize("threshold", [40, bodies.SMALL])
def test_numbers(number, threshold, monkeypatch):
    """Numbers of any size are JSON."""
    monkeypatch.setattr(bodies, "SMALL", threshold)
    whole = bundle(observation(1, value="?")) | {"total": "?"}
    body = json.dumps(whole).replace('"?"', number).encode()
    found = seen(body)
    assert (found.patients, found.trouble) == (("1",), "")


def test_byte_order_mark(small):
    """A byte order mark before JSON is passed over."""
    assert seen(b"\xef\xbb\xbf" + json.dumps(observation(1)).encode()).patients == ("1",)
    assert seen(b"\xef\xbb\xbf" + json.dumps(bundle(observation(1))).encode()).complete


def test_odd_ids():
    """An id is taken as it is, also one that no other system would have."""
    odd = ["é☃", "a%20b", "a b", "../..", '"', "{[", "\ud800", "\x00"]
    for identifier in odd:
        found = seen(bundle({"resourceType": "Patient", "id": identifier}))
        assert (found.patients, found.trouble) == ((identifier,), "")


def mutated(body: bytes, chance: random.Random) -> bytes:
    data = bytearray(body)
    for _ in range(chance.randrange(1, 6)):
        start = chance.randrange(len(data) + 1)
        piece = chance.choice([b'"', b"{", b"}", b"[", b"]", b",", b"\\", b"\xff", b"null", b"\n"])
        data[start : start + chance.randrange(4)] = piece * chance.randrange(3)
    return bytes(data)


@given(bundles, st.randoms(use_true_random=False), cuts, st.sampled_from(["", "gzip", "deflate"]))
def test_mutations(given_bundle, chance, places, coding):
    """No body makes the reading raise, and pieces make no difference to what it finds."""
    body = mutated(json.dumps(given_bundle).encode(), chance)
    coded = CODINGS[coding](body)
    if chance.random() < 0.3:
        coded = mutated(coded, chance)
    headers = {"content-encoding": coding}
    for content_type in (FHIR, NDJSON, "application/json"):
        kept = {"headers": headers, "reading": RULED, "template": "/r"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bodies, "SMALL", 40)
            found = seen(coded, content_type, cuts=places, **kept)
            if not coding:
                assert found == seen(coded, content_type, **kept)
        whole = seen(coded, content_type, cuts=places, **kept)
        assert not found.complete or found == whole


@given(st.binary(max_size=300), cuts, st.sampled_from(["", "gzip", "deflate", "gzip, deflate"]))
def test_random_bytes(body, places, coding):
    """No bytes make the reading raise."""
    for content_type in (FHIR, NDJSON, "application/json", "image/png"):
        seen(body, content_type, headers={"content-encoding": coding}, cuts=places, cut=True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                "resourceType entry resource contained subject patient reference identifier id "
                "type parameter part valueReference meta tag code fullUrl participant actor".split()
            )
            | texts,
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@given(json_values, st.sampled_from(["Patient", "Bundle", "Observation", "Parameters", "Binary"]))
def test_any_json(value, kind):
    """Whatever stands where, the reading ends and says so."""
    body = {**value, "resourceType": kind} if isinstance(value, dict) else value
    seen(body)
    seen({"resourceType": "Bundle", "entry": [{"resource": body}]})
    seen({"resourceType": kind, "entry": value, "contained": value, "subject": value, "id": value})
    seen({"resourceType": kind, "parameter": value, "meta": value, "securityContext": value})
    seen(body, "application/json", reading=RULED, template="/r")
