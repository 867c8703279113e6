"""Reports as pages: what stands in a record stays text, and a PDF is one that can be handed out."""

import html as pages_of
import re
import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import makes_pdfs
from pypdf import PdfReader

from authz.cli.report_made import show
from authz.report import pages
from authz.report.completeness import Completeness, Log, Verdict, section
from authz.report.document import Document, Section

ROOT = "q6Xq0m1zq5Z1Jw3xKq1f0bqLr9oZ2mE4yD0b1Yb0c3M="
RESTS_ON = Completeness(
    1_795_000_000_000_000, (Log("demo/receiver", 12_345, ROOT),), {"bypass": 2}, 7, 3,
    ("8bfec9aca36d",), ("0badc0de",), Verdict(intact=True, text="12,345 records"),
)  # fmt: skip
HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}<img src=http://192.0.2.1/x>"


def made(text="plain", rows=1, **more):
    table = Section("Rows", ("one", "two"), tuple((str(n), text) for n in range(rows)), (text,))
    head = (("Patient", text), ("Period", "2026"))
    return Document("Accounting", head, (table, section(RESTS_ON)), **more)


@given(st.text())
def test_whatever_is_in_a_record_is_text(text):
    """No value becomes markup, and what a reader would not see is escaped."""
    page = pages.html(made(text, issuer=f"x{text}", marking=f"x{text}", notes=(text,)))
    plain = pages.html(made("", issuer="x", marking="x", notes=("",)))
    names = re.compile(r"<(/?[a-zA-Z!][^\s>]*)")
    assert names.findall(page) == names.findall(plain)
    body = page.partition("<body>")[2]
    assert all(c.isprintable() or c == "\n" for c in body)


def test_a_value_makes_no_line():
    """A line break in a record is shown as what it is, so that it forges no line of ours."""
    forged = "x\nexplained by: care team"
    assert r"x\nexplained by" in pages.html(made(forged))
    assert "a\nb" in pages.html(Document("t", (("p", ("a", "b")),), ()))


def test_hostile_values():
    """Scripts, templates and addresses of images are shown as they were written."""
    page = pages.html(made(HOSTILE, issuer=HOSTILE))
    assert "<script" not in page
    assert "<img" not in page
    assert HOSTILE in pages_of.unescape(page)
    assert "default-src 'none'" in page


def test_a_page_loads_nothing():
    """All of it is in the file."""
    assert re.findall(r"(?:src|href|url|@import)\s*[=(]", pages.html(made())) == []


def test_pdf_of_several_pages():
    """Each page repeats the table's head and has its number; the proof of completeness is last,
    with sizes, roots, gaps, and how to check them."""
    makes_pdfs()
    data = pages.pdf(made(HOSTILE, rows=150, marking="INTERNAL"))
    read = PdfReader(BytesIO(data))
    told = [page.extract_text() for page in read.pages]
    assert len(told) > 3
    for number, text in enumerate(told, 1):
        assert f"page {number} of {len(told)}" in text
        assert "INTERNAL" in text
    assert all("one" in text and "two" in text for text in told[1:-1])
    last = "".join(told[-2:]).replace("\n", "")
    for words in (ROOT, "12,345", "2 bypass", "8bfec9aca36d", "0badc0de", "authz verify"):
        assert words in last
    assert read.metadata.title == "Accounting"
    assert "<script>" in "".join(told).replace("\n", "")


def laid_out(document):
    """Of each page, its boxes of text."""
    makes_pdfs()
    import weasyprint

    made = weasyprint.HTML(string=pages.html(document)).render()
    return [
        (page.width, [box for box in page._page_box.descendants() if getattr(box, "text", "")])
        for page in made.pages
    ]


def test_nothing_is_cut_off():
    """Whatever is long and has no place to break ends within the page's margins, wherever it
    stands; numbers and hashes are in one line all the same."""
    long = "A" * 200
    origin = "eu-west-1-of-the-operator/receiver-of-the-eastern-region-" * 2
    rests_on = replace(RESTS_ON, logs=(Log(origin, 123_456_789_012, ROOT),), policies=(long,))
    table = Section(long, ("one", "two", long), ((long, "12,345,678", ("x", long)),), (long,))
    document = Document(
        "Accounting", ((long, long),), (table, section(rests_on)), (long,), issuer=long
    )
    boxes = []
    for width, found in laid_out(document):
        boxes += found
        assert max(box.position_x + box.width for box in found) <= width - 15 / 25.4 * 96 + 1
    assert {ROOT, "123,456,789,012", "12,345,678"} <= {box.text.strip() for box in boxes}


def test_no_row_stands_alone():
    """A table does not end with one row on a page of its own."""
    makes_pdfs()
    for rows in range(30, 42):
        *_, (_, last) = laid_out(made("", rows=rows))
        texts = [box.text.strip() for box in last]
        assert texts.count(str(rows - 1)) == texts.count(str(rows - 2)), rows


def test_without_weasyprint():
    """Who asks for a PDF without the extra is told its name, before anything else is done."""
    code = (
        "import sys; sys.modules['weasyprint'] = None\n"
        "from authz.report import pages\n"
        "from authz.errors import UsageError\n"
        "try:\n    pages.check_pdf()\nexcept UsageError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'authz[reports]'" in done.stdout


@given(st.text())
def test_a_terminal_is_safe(text):
    """On a terminal no value is more than text."""
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    show(made(text, issuer=text, marking=text), Console(file=out, width=120, force_terminal=False))
    assert all(c.isprintable() or c == "\n" for c in out.getvalue())


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (None, "not verified when this report was made"),
        (Verdict(intact=False, text="2 findings (changed)"), "NOT INTACT"),
    ],
)
def test_what_was_not_verified_is_not_praised(verdict, words):
    """Where nobody verified, or it was not intact, the report says so."""
    rests_on = Completeness(RESTS_ON.made_at, RESTS_ON.logs, {}, 0, 0, (), (), verdict)
    assert words in " ".join(section(rests_on).notes)
    assert "No answer was looked into" in " ".join(section(rests_on).notes)
