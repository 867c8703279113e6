"""A report as HTML and as PDF. Whatever stands in a record stays text: the template escapes all of
it, and nothing is loaded from anywhere."""

import re
from functools import cache
from typing import Any, NoReturn

import jinja2

from authz.errors import UsageError
from authz.report.document import Document, cell_text

_WHOLE = re.compile(r"[0-9][0-9,.%]{0,20}|[A-Za-z0-9+/]{43}=")  # numbers, and hashes: in one line
_MISSING = (
    "--pdf: WeasyPrint is missing; install the extra: pip install 'authz[reports]', and Pango"
    " (Debian: libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0)"
)


def html(document: Document) -> str:
    """One page, complete in itself."""
    return _template().render(document=document)


@cache
def _template() -> jinja2.Template:
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("authz.report"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters["text"] = cell_text
    pages.tests["whole"] = lambda cell: isinstance(cell, str) and bool(_WHOLE.fullmatch(cell))
    return pages.get_template("report.html")


def pdf(document: Document) -> bytes:
    """The same, paged. Raises `UsageError` where WeasyPrint is missing."""
    made: bytes = _weasyprint().HTML(string=html(document), url_fetcher=_refuse).write_pdf()
    return made


def check_pdf() -> None:
    """Raises `UsageError` unless PDFs can be made here."""
    _weasyprint()


def _weasyprint() -> Any:
    try:
        import weasyprint  # noqa: PLC0415 - in the extra `reports`, and slow
    except (ImportError, OSError):  # OSError: a library of Pango's is missing
        raise UsageError(_MISSING) from None
    return weasyprint


def _refuse(url: str, *_: object, **__: object) -> NoReturn:
    raise ValueError(f"a report loads nothing: {url[:40]}")
