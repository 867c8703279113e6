"""Bodies and queries are read as opa-envoy-plugin reads them; what is ambiguous is refused."""

import pytest
from envoy_requests import parsed_body, with_http

from authz.envoy.check import BadRequestError, input_document
from authz.envoy.parsing import MAX_JSON_DEPTH, MAX_QUERY_PARAMETERS


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"a": 1, "a": 2}', {"a": 2}),
        (b'{"raw": "\xff"}', {"raw": "\N{REPLACEMENT CHARACTER}"}),
        (r'["cut \ud83d", "\ud83d\ude00", "\\ud83d"]', ["cut \ufffd", "\U0001f600", r"\ud83d"]),
        ("null", None),
    ],
)
def test_json_is_read_as_go_reads_it(body, expected):
    """The last of two keys wins; broken bytes and half pairs show as U+FFFD."""
    assert parsed_body("application/json", body) == expected


def test_json_depth_is_bounded():
    """Nesting up to the limit is read, one more is a bad request, a million too."""
    deepest = "[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH
    assert parsed_body("application/json", deepest)
    flat = "[" + "[]," * 500 + "{}]"
    assert len(parsed_body("application/json", flat)) == 501
    for bad in (f"[{deepest}]", "[" * 1_000_000, '{"a":' * 200 + "1" + "}" * 200):
        with pytest.raises(BadRequestError):
            parsed_body("application/json", bad)


@pytest.mark.parametrize(
    "body", ["NaN", "[Infinity]", "1e999", "{", "{} x", "'a'", "01", "\ufeff{}"]
)
def test_json_that_is_none_is_refused(body):
    """What is no JSON, numbers without a finite value included, is a bad request."""
    with pytest.raises(BadRequestError, match="request_parse_error: "):
        parsed_body("application/json", body)


@pytest.mark.parametrize(
    ("length", "truncated"),
    [("2", False), ("3", True), ("-1", False), ("+2", False), ("9" * 19, True)],
)
def test_a_short_body_is_truncated(length, truncated):
    """A body shorter than its content-length is not parsed, and marked."""
    document = input_document(
        with_http(headers={"content-type": "application/json", "content-length": length}, body="{}")
    )
    assert document["truncated_body"] is truncated
    assert document["parsed_body"] == (None if truncated else {})


@pytest.mark.parametrize("length", ["", "two", "1_0", "٢", "9" * 40])
def test_a_content_length_that_is_no_number_is_refused(length):
    """Only ASCII digits of a sensible count are a length."""
    with pytest.raises(BadRequestError, match="content-length"):
        parsed_body("application/json", "{}", **{"content-length": length})


MULTIPART = (
    "preamble\r\n--b\r\n"
    'Content-Disposition: form-data; name="id"\r\n\r\n12\r\n-3\r\n'
    '--b \r\ncontent-disposition: form-data;\r\n name="id"; filename="C:\\x"\r\n\r\n\r\n'
    '--b\r\nContent-Type: application/json\r\nContent-Disposition: form-data; name="a\\"b"\r\n\r\n'
    '{"x": [1]}\r\n'
    "--b\r\n\r\nno name\r\n"
    "--b\r\nContent-Disposition: attachment; name=x\r\n\r\nno field\r\n--b--\r\nepilogue"
)


@pytest.mark.parametrize("newline", ["\r\n", "\n"])
def test_multipart_fields_are_read(newline):
    """Each named part of a form is a value; JSON parts are parsed, others are text."""
    body = MULTIPART.replace("\r\n", newline)
    expected = {"id": [f"12{newline}-3", ""], 'a"b': [{"x": [1]}]}
    assert parsed_body("multipart/form-data; boundary=b", body) == expected
    assert parsed_body('multipart/form-data; Boundary="b";', body.encode()) == expected


@pytest.mark.parametrize(
    "body",
    [
        "",
        "x",
        "--b",
        "--b\r\n",
        "--b\r\nA: b\r\n\r\nnever ends",
        "--b\r\nno header\r\n\r\n1\r\n--b--",
        "--b\r\nA: b\r\nA: c\r\n\r\n1\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name*=utf-8''x\r\n\r\n1\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name=x; name=y\r\n\r\n1\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name=\r\n\r\n1\r\n--b--",
        "--b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n1\r\n--b--",
        "--b\r\nA: b\r\n\r\n1\r\n--b trailing\r\n\r\n--b--",
        "--b--\n--b\n\nnot the end for everyone\n--b--",
    ],
)
def test_ambiguous_multipart_is_refused(body):
    """A form that two readers could take apart differently is a bad request."""
    with pytest.raises(BadRequestError):
        parsed_body("multipart/form-data; boundary=b", body or " ")


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data; boundary=", "multipart/form-data, a"]
)
def test_multipart_without_a_readable_boundary_is_refused(content_type):
    """A media type that does not parse is a bad request; one without boundary is just not read."""
    with pytest.raises(BadRequestError):
        parsed_body(content_type, "--b--")
    assert parsed_body("multipart/form-data", "--b--") is None


def test_many_query_parameters_are_refused():
    """A query of more parameters than Go reads is a bad request."""
    query = "&".join(["a"] * MAX_QUERY_PARAMETERS)
    assert len(input_document(with_http(path="/?" + query))["parsed_query"]["a"]) == 10_000
    with pytest.raises(BadRequestError):
        input_document(with_http(path=f"/?{query}&"))


def test_a_semicolon_in_the_query_is_refused():
    """Go refuses `;` between parameters, since some servers split there."""
    with pytest.raises(BadRequestError, match="invalid semicolon separator in query"):
        input_document(with_http(path="/?a=1;b=2"))
