"""Records nobody would write, every field at its edges."""

from random import Random

from hypothesis import strategies as st

from authz.record import FIELDS, MAX_INT, Field, Record, Value

ODD = (
    "",
    "\0",
    "\x01\x1f\x7f",
    '"\\/\b\f\n\r\t',
    "\u2028\u2029",
    "\ufeff",
    "e\u0301",
    "\U0001f600",
    "\uffff",
    "\x80\x9f",
    "\u202eabc",
    "::ffff:10.0.0.1",
    "2001:DB8:0:0::1",
    "2001:db8::1",
    "fe80::1%eth0",
    "null",
    "{}",
    "'",
    "%s",
    " leading and trailing ",
    "x" * 5000,
)
EDGES = (0, 1, 255, 256, 65_535, 65_536, 2**31, 2**32, 2**53 - 2, MAX_INT)


def hostile(random: Random) -> Record:
    """A record of about half of the fields; each value fits its field."""
    return {field.name: _value(field, random) for field in FIELDS if random.random() < 0.5}


def _value(field: Field, random: Random) -> Value:
    match field.type:
        case "text":
            return _text(field, random)
        case "texts":
            return [_text(field, random) for _ in range(random.choice((0, 1, 2, field.items)))]
        case "bool":
            return random.random() < 0.5
        case _:
            return min(random.choice((*EDGES, random.randrange(MAX_INT))), field.cap)


def _text(field: Field, random: Random) -> str:
    if random.random() < 0.7:
        return random.choice(ODD)[: field.cap]
    points = (
        chr(random.choice((random.randrange(128), random.randrange(0x10FFFF)))) for _ in "1234567"
    )
    return "".join(point for point in points if not "\ud800" <= point <= "\udfff")


TEXTS = st.one_of(st.sampled_from(ODD), st.text(st.characters(codec="utf-8"), max_size=64))
RECORDS = st.integers(0, 2**32).map(lambda seed: hostile(Random(seed)))
