"""One file, the environment over it, options over both; what is wrong is named with its mend."""

import contextlib
import os

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authz.config import Config, describe, load
from authz.errors import UsageError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in os.environ:
        if name.startswith("AUTHZ_"):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path):
    """Writes a configuration file."""

    def write(text):
        path = tmp_path / "authz.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refused(path=None, options=None):
    with pytest.raises(UsageError) as raised:
        load(path, options)
    return str(raised.value)


def test_defaults():
    """Without anything given, everything has a value, and decisions are enforced and synced."""
    config = load()
    assert config.ext_authz.listen == "127.0.0.1:9191"
    assert config.ext_authz.dry_run is False
    assert config.ext_authz.unsafe_paths == "deny"
    assert config.journal.durability == "fsync"


def test_environment_over_file_and_options_over_both(file, monkeypatch):
    """Of each key the nearest word counts, and those beside it in its section stay."""
    path = file(
        "data_dir: /from/file\n"
        "receiver:\n  listen: 127.0.0.1:1\n  origin: from/file\n"
        "  batch_rows: 1\n  batch_seconds: 7\n"
    )
    monkeypatch.setenv("AUTHZ_RECEIVER__ORIGIN", "from/environment")
    monkeypatch.setenv("AUTHZ_RECEIVER__BATCH_ROWS", "2")
    config = load(path, {"receiver": {"batch_rows": 3}})
    assert str(config.data_dir) == "/from/file"
    assert config.receiver.listen == "127.0.0.1:1"
    assert config.receiver.batch_seconds == 7
    assert config.receiver.origin == "from/environment"
    assert config.receiver.batch_rows == 3
    monkeypatch.setenv("AUTHZ_DATA_DIR", "/from/environment")
    assert str(load(path).data_dir) == "/from/environment"
    assert str(load(path, {"data_dir": "/from/option"}).data_dir) == "/from/option"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("data_dri: /x\n", 1, ["data_dri", "no key here", "data_dir", "ext_authz"]),
        ("\n\nreceiver:\n  listn: a:1\n", 4, ["receiver.listn", "no key here", "listen", "origin"]),
        ("receiver:\n  listen: nowhere\n", 2, ["receiver.listen", "'nowhere'", "127.0.0.1:9191"]),
        ("receiver:\n  listen: host:65536\n", 2, ["receiver.listen", "host:port"]),
        ("receiver:\n  listen: unix://relative\n", 2, ["receiver.listen", "unix:///path"]),
        ("receiver:\n  metrics: unix:///m\n", 2, ["receiver.metrics", "host:port"]),
        ("receiver:\n  origin: a b\n", 2, ["receiver.origin", "without spaces"]),
        ("receiver:\n  batch_rows: many\n", 2, ["receiver.batch_rows", "integer"]),
        ("receiver:\n  batch_rows: 0\n", 2, ["receiver.batch_rows", "greater than or equal to 1"]),
        ("receiver:\n  batch_seconds: .nan\n", 2, ["receiver.batch_seconds"]),
        ("ext_authz:\n  timeout_ms: 50\n", 2, ["ext_authz.timeout_ms", "60"]),
        ("ext_authz:\n  unsafe_paths: maybe\n", 2, ["ext_authz.unsafe_paths", "'deny' or 'allow'"]),
        ("ext_authz:\n  decision: 'a.b'\n", 2, ["ext_authz.decision", "envoy/authz/allow"]),
        ("ext_authz:\n  dry_run: perhaps\n", 2, ["ext_authz.dry_run", "boolean"]),
        ("journal:\n  durability: none\n", 2, ["journal.durability", "'receiver' or 'os'"]),
        ("journal:\n", 1, ["journal"]),
        ("journal: 5\n", 1, ["journal"]),
        ("data_dir: a\ndata_dir: b\n", 2, ["data_dir", "twice"]),
        ("receiver:\n  listen: a:1\n  listen: b:1\n", 3, ["listen", "twice"]),
        ("data_dir: [a\n", 2, ["not YAML"]),
        ("data_dir: !!python/name:os.system\n", 1, ["not YAML"]),
        ("5: x\n", 1, ["5", "no key here"]),
        ("? [a]\n: b\n", 1, []),
        ("- a\n- b\n", 1, ["keys and values"]),
        ("just text", 1, ["keys and values"]),
    ],
)
def test_what_is_wrong_is_named(file, text, line, said):
    """A wrong key or value is named with its file, line and what is wanted."""
    path = file(text)
    message = refused(path)
    assert message.startswith(f"{path}, line {line}: ")
    for part in said:
        assert part in message
    assert "\n" not in message


_ISSUER = """identity:
  sources: [jwt]
  issuers:
    - issuer: https://idp.example
      audiences: [fhir]
      jwks: https://idp.example/keys
"""


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (_ISSUER + "      jwsk: a\n", 7, ["identity.issuers.0.jwsk", "no key here", "jwks"]),
        (_ISSUER + "      jwks: b\n", 7, ["jwks", "twice"]),
        (_ISSUER + "      algorithms: [none]\n", 7, ["issuers.0.algorithms.0", "'ES256'"]),
        (_ISSUER + "      algorithms:\n      - ES256\n      - HS256\n", 9, ["algorithms.1"]),
        (_ISSUER + "      algorithms: []\n", 7, ["algorithms", "at least 1"]),
        (_ISSUER + "      header: 'a b'\n", 7, ["issuers.0.header", "x-user", "'a b'"]),
        (_ISSUER + "      leeway_seconds: 3600\n", 7, ["leeway_seconds", "300"]),
        (_ISSUER + "      max_age_seconds: 20\n", 4, ["issuers.0", "refresh_seconds", "raise it"]),
        (_ISSUER.replace("[fhir]", "[]"), 5, ["issuers.0.audiences", "at least 1"]),
        (_ISSUER.replace("[fhir]", "fhir"), 5, ["issuers.0.audiences", "tuple"]),
        (_ISSUER.replace("https://idp.example/keys", "ftp://a/b"), 6, ["jwks", "a file, or http"]),
        (_ISSUER.replace("://idp.example/keys", "://u:p@a/b"), 6, ["without user or password"]),
        (_ISSUER.replace("      audiences: [fhir]\n", ""), 4, ["issuers.0.audiences", "required"]),
        (_ISSUER.replace("[jwt]", "[mtls]"), 1, ["'jwt'", "issuers", "give both, or neither"]),
        (_ISSUER + _ISSUER.partition("issuers:\n")[2], 1, ["https://idp.example", "twice"]),
        ("identity:\n  sources: [jwt]\n", 1, ["'jwt'", "issuers", "give both, or neither"]),
        ("identity:\n  sources: []\n", 2, ["identity.sources", "at least 1"]),
        ("identity:\n  sources: [mtls, mtls]\n", 1, ["identity", "'mtls' twice"]),
        ("identity:\n  sources: [tls]\n", 2, ["identity.sources.0", "'mtls'"]),
        ("identity:\n  sources: [headers]\n", 1, ["subject_header", "give both, or neither"]),
        ("identity:\n  subject_header: x-user\n", 1, ["'headers'", "give both, or neither"]),
        ("identity:\n  roles_header: x-roles\n", 1, ["subject_header", "give it too"]),
        ("identity:\n  subject_claim: ''\n", 2, ["identity.subject_claim", "at least 1"]),
        ("identity:\n  same: [[jwt_authn]]\n", 1, ["same", "two sources"]),
        ("identity:\n  same: [[jwt_authn, mtls]]\n", 1, ["'mtls'", "not in sources"]),
        ("identity:\n  same: [jwt_authn]\n", 2, ["identity.same.0"]),
        ("identity:\n  issuers: &a [*a]\n", 2, ["identity.issuers"]),
    ],
)
def test_what_is_wrong_with_identity_is_named(file, text, line, said):
    """A fault in the list of issuers is named with its place, its line and the mend."""
    path = file(text)
    message = refused(path)
    assert message.startswith(f"{path}, line {line}: "), message
    for part in said:
        assert part in message


def test_prefixes_in_one_header(file):
    """Prefixes in one header must tell whose token it is."""
    issuer = {"audiences": ["a"], "jwks": "/keys", "header": "X-Token"}
    for first, second in (("", "b"), ("Bearer", "bearer "), ("b ", "B x")):
        issuers = [
            {**issuer, "issuer": "a", "prefix": first}, {**issuer, "issuer": "b", "prefix": second},
        ]  # fmt: skip
        said = refused(None, {"identity": {"sources": ["jwt"], "issuers": issuers}})
        assert "do not tell tokens apart" in said


def test_identity_as_it_is_by_default():
    """By default Envoy has verified the token, and no header names anybody."""
    identity = load().identity
    assert identity.sources == ("jwt_authn",)
    assert (identity.subject_header, identity.issuers, identity.required) == ("", (), False)


def test_identity_from_the_environment(monkeypatch):
    """Issuers come from the environment as JSON, and names of headers count in lower case."""
    issuer = '[{"issuer": "a", "audiences": ["b"], "jwks": "/keys", "header": "X-Token"}]'
    monkeypatch.setenv("AUTHZ_IDENTITY__SOURCES", '["jwt"]')
    monkeypatch.setenv("AUTHZ_IDENTITY__ISSUERS", issuer)
    [issuer] = load().identity.issuers
    assert issuer.header == "x-token"
    assert issuer.algorithms == ("RS256", "PS256", "ES256", "EdDSA")


def test_all_faults_at_once(file):
    """Each fault has a line of its own."""
    message = refused(file("data_dri: x\nreceiver:\n  listen: x\n"))
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "said"), [(b"data_dir: \xff\n", "no text"), (b"a: \x00\n", "no text")]
)
def test_no_text(file, text, said):
    """A file that is no text is told as that."""
    assert said in refused(file(text))


def test_no_file(tmp_path):
    """A file that is not there is named, with the option."""
    path = tmp_path / "absent.yaml"
    assert refused(path) == f"--config {path}: No such file or directory"
    assert "directory" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AUTHZ_RECEIVER__LISTEN", "x", "receiver.listen"),
        ("AUTHZ_RECEIVER__LISTN", "x", "receiver.listn"),
        ("AUTHZ_RECEIVER", "x", "AUTHZ_RECEIVER"),
        ("AUTHZ_PRIVACY__TEMPLATES", "/a/{id}", "AUTHZ_PRIVACY__TEMPLATES"),
        ("AUTHZ_JOURNAL__MAX_BYTES", "1GB", "journal.max_bytes"),
    ],
)
def test_wrong_environment(monkeypatch, name, value, said):
    """A wrong variable is named, and never passed over."""
    monkeypatch.setenv(name, value)
    assert said in refused()


def test_wrong_option():
    """A wrong option is named by its key."""
    assert "receiver.listen" in refused(None, {"receiver": {"listen": "x"}})


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:9191", "[::1]:1", "localhost:65535", "unix:///run/a.sock", "0.0.0.0:0"],
)
def test_addresses(address):
    """Addresses of every kind are taken as they are."""
    assert load(None, {"receiver": {"listen": address}}).receiver.listen == address


def test_values_that_yaml_would_change(file):
    """What looks like a date stays text; an empty file is a configuration of defaults."""
    assert str(load(file("data_dir: 2024-02-30\n")).data_dir) == "2024-02-30"
    assert load(file("")) == load()
    assert load(file("# nothing\n")) == load()


def test_description_is_a_configuration(file):
    """What `authz config` prints can be used as the file, and has every key."""
    text = describe()
    assert load(file(text)) == load()
    content = yaml.safe_load(text)
    assert set(content) == set(Config.model_fields)
    for section, keys in content.items():
        if isinstance(keys, dict):
            assert set(keys) == set(type(getattr(load(), section)).model_fields)
    for key in type(load().identity).model_fields["issuers"].annotation.__args__[0].model_fields:
        assert f"\n  #   {key}: " in text
    assert all("#" in line for line in text.splitlines() if line and not line.endswith(":"))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(alphabet="ab: \n-[]{}\"'&*!?|>#,0.", max_size=60)
    | st.binary(max_size=40)
    | st.dictionaries(
        st.sampled_from([*Config.model_fields, "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["listen", "origin", "max_bytes", "key", "templates"]), inner
                )
            ),
            max_leaves=6,
        ),
    ).map(yaml.safe_dump)
)
def test_any_file(file, text):
    """Whatever a file holds, it is a configuration or a UsageError."""
    with contextlib.suppress(UsageError):
        assert isinstance(load(file(text)), Config)
