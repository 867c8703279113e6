"""What `authz lookup` takes and shows: times as people give them, and text that is only text."""

import datetime as dt
import io
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from authz.cli.lookup import printable, show
from authz.cli.times import moment, shown
from authz.errors import UsageError
from authz.report import Lookup, Request

NOW = 1_795_000_000_000_000
REQUEST = Request(
    time=NOW, subject="dr.alder", roles=("physician",), tenant="lakeside", purpose="TREAT",
    reason="care team", break_glass=False, action="R", resource_type="Patient",
    path="/fhir/Patient/{id}", method="GET", source_ip="192.0.2.7", outcome="allowed",
    answered=True, status=200, known=("request",), patients=(1,), decision_id="d",
    policy_revision="8bfec9aca36de12d3c",
    records=("a/b/3", "a/b/14", "c/d/1"),
)  # fmt: skip
FOUND = Lookup(
    requests=(REQUEST,), total=1, people=1, denied=0, first=NOW, last=NOW, unresolved=0,
    disclosures=True, other_keys=(),
)  # fmt: skip


def text_of(found, *, several=False):
    out = io.StringIO()
    show(found, Console(file=out, width=140, force_terminal=False), several=several)
    return out.getvalue()


@given(st.text())
def test_text_cannot_steer_a_terminal(text):
    """No text of a record reaches the terminal as more than text, in whatever field it stands."""
    told = text_of(
        replace(
            FOUND,
            requests=(replace(REQUEST, subject=text, reason=text, records=(f"{text}/1",)),),
            other_keys=(text,),
        )
    )
    assert all(c.isprintable() or c == "\n" for c in told)
    assert all(c.isprintable() for c in printable(text))


def test_markup_is_text():
    """What looks like the table's own markup is shown as it is."""
    assert "[bold red]x[/]" in text_of(
        replace(FOUND, requests=(replace(REQUEST, subject="[bold red]x[/]"),))
    )
    assert "[bold]k[/]" in text_of(replace(FOUND, other_keys=("[bold]k[/]",)))


def test_nothing_is_left_out_silently():
    """What is not shown, not resolved, not looked into or not searched is told."""
    told = text_of(replace(FOUND, total=5, people=2, unresolved=3, other_keys=("abcd0123",)))
    assert "and 4 older requests" in told
    assert "2 people, 5 requests, 0 denied" in told
    assert "3 answers in this time could not be resolved" in told
    assert "abcd0123" in told
    assert "could not be resolved" not in text_of(FOUND)
    assert "of every answer in this time it is known" in text_of(FOUND)
    assert "no answer was looked into" in text_of(replace(FOUND, disclosures=False))
    assert "nobody" in text_of(replace(FOUND, requests=(), total=0, people=0))
    assert "a/b/3, 14" in told
    assert "patient 1" in text_of(FOUND, several=True)


def test_what_was_done_and_by_which_rules():
    """What was done is told in a word, and how to print the rules that decided; of several
    policies, each request names its own."""
    told = text_of(FOUND)
    assert "read Patient" in told
    assert "the rules behind it: authz policy show 8bfec9aca36d" in told
    assert not re.search(r"policy 8bfec9aca36d +│", told)
    search = replace(REQUEST, action="E", resource_type="Observation", path="/fhir/Observation")
    operation = replace(search, path="/fhir/Patient/{id}/$everything", policy_revision="0123456789")
    told = text_of(replace(FOUND, requests=(search, operation)))
    assert "search Observation" in told
    assert "execute Observation" in told
    assert re.search(r"policy 0123456789 +│", told)
    assert "authz policy show 8bfec9aca36d, authz policy show 0123456789" in told


@given(st.integers(86_400_000_000, 7_000_000_000_000_000))
def test_iso_times(time_us):
    """A date or time is UTC unless it names a zone, and is what the tables show again."""
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    at = (epoch + dt.timedelta(microseconds=time_us)).replace(tzinfo=None)
    whole = at.replace(microsecond=0)
    assert moment("--since", at.isoformat(), NOW) == time_us
    assert shown(moment("--since", whole.isoformat(" "), NOW)) == whole.isoformat(" ")
    assert moment("--since", f"{whole.isoformat()}+02:00", NOW) == (
        moment("--since", whole.isoformat(), NOW) - 7_200_000_000
    )


def test_ages():
    """An age is before now, and never before the epoch."""
    assert moment("--since", "7d", NOW) == NOW - 7 * 86_400_000_000
    assert moment("--since", "90m", NOW) == NOW - 5_400_000_000
    assert moment("--since", "999999999d", NOW) == 0


@pytest.mark.parametrize("given_", ["", "tomorrow", "7w", "-7d", "2026-13-01", "1e9", "7d ago"])
def test_no_time(given_):
    """What is no time is named, with what is wanted."""
    with pytest.raises(UsageError, match=r"--until .*want a date or time"):
        moment("--until", given_, NOW)
