"""`authz policy build`: what is in the bundle, and what it refuses."""

import asyncio
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from deciding import POLICY
from programs import CHECKOUT

from authz.policy import bundle, source
from authz.policy.embedded import EmbeddedEngine

pytestmark = pytest.mark.opa

RULE = 'package envoy.authz\n\nallow := {"allowed": false, "audit": {"reason": "no"}}\n'


@pytest.fixture(autouse=True)
def _with_opa(opa, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(opa).parent), prepend=":")


@pytest.fixture
def policy(tmp_path):
    """A small policy with a test beside it."""
    directory = tmp_path / "policy"
    directory.mkdir()
    (directory / "allow.rego").write_text(RULE)
    (directory / "allow_test.rego").write_text("package envoy.authz_test\n\ntest_x if true\n")
    (directory / "data.json").write_text('{"ward": "east"}')
    return directory


def written(path, private, password=None):
    """A private key in PEM."""
    form = serialization.PrivateFormat.PKCS8
    cipher = serialization.NoEncryption()
    if password:
        cipher = serialization.BestAvailableEncryption(password)
    path.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, cipher))
    return path


def build(policy, *options):
    command = [sys.executable, "-m", "authz", "policy", "build", "--policy", policy, *options]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("private", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (rsa.generate_private_key(65537, 2048), "RS256"),
    ],
    ids=["P-256", "P-384", "RSA"],
)
def test_what_is_in_it(opa, policy, tmp_path, private, algorithm):
    """The policy without its tests, its data, and the modules that ext-authz and OPA want; OPA
    takes the signature by the public key and by no other."""
    made = tmp_path / "bundle.tar.gz"
    key = written(tmp_path / "signing.pem", private)
    code, told, error = build(
        policy, "--signing-key", key, "--revision", "r1", "-o", made, "--json"
    )
    assert code == 0, error
    assert (json.loads(told)["signed"], json.loads(told)["revision"]) == (algorithm, "r1")
    with tarfile.open(made) as opened:
        assert {name.removeprefix("/") for name in opened.getnames()} == {
            "allow.rego", "authz_api.rego", "authz_batch.rego", "authz_data.rego", "data.json",
            ".manifest", ".signatures.json",
        }  # fmt: skip
    own, other = tmp_path / "own.pem", tmp_path / "other.pem"
    for path, owner in ((own, private), (other, ec.generate_private_key(ec.SECP256R1()))):
        path.write_bytes(
            owner.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        verify = [opa, "build", "--bundle", made, "--verification-key", path, "--signing-alg",
                  algorithm, "--output", tmp_path / "again.tar.gz"]  # fmt: skip
        done = subprocess.run([str(part) for part in verify], capture_output=True, check=False)
        assert (done.returncode == 0) is (path == own), done.stderr


def test_the_same_policy_makes_the_same_bundle(policy, tmp_path):
    """Built twice it is the same, byte for byte; changed data is another policy_revision."""
    made = [tmp_path / name for name in ("a.tar.gz", "b.tar.gz", "c.tar.gz")]
    first, again = (
        bundle.build(source.load(policy), "envoy/authz/allow", path, label="r", key=None)
        for path in made[:2]
    )
    assert made[0].read_bytes() == made[1].read_bytes()
    (policy / "data.json").write_text('{"ward": "west"}')
    changed = bundle.build(source.load(policy), "envoy/authz/allow", made[2], label="r", key=None)
    assert first.policy_revision == again.policy_revision != changed.policy_revision


async def _start(path):
    engine = EmbeddedEngine(path, "envoy/authz/allow")
    await engine.start()
    await engine.close()


def test_the_embedded_engine_takes_it_too(tmp_path):
    """A bundle of the whole library is a policy for the embedded engine, without OPA's module."""
    made = tmp_path / "bundle.tar.gz"
    bundle.build(source.load(POLICY), "envoy/authz/allow", made, label="", key=None)
    assert "authz_batch.rego" not in source.load(made).modules
    asyncio.run(_start(made))


def test_what_may_be_asked(tmp_path, policy):
    """The bundle says it as the node's OPA does until it has one; a policy's own comes first."""
    node = CHECKOUT / "deploy" / "kubernetes" / "opa-node" / "authorization.rego"
    assert bundle.API.replace("import rego.v1\n\n", "") == node.read_text()
    made = tmp_path / "bundle.tar.gz"
    (policy / "own.rego").write_text("package system.authz\n\ndefault allow := true\n")
    told = bundle.build(source.load(policy), "envoy/authz/allow", made, label="", key=None)
    assert set(told.modules) == {"allow.rego", "own.rego", "authz_data.rego"}


def test_what_cannot_be_built(policy, tmp_path):
    """Keys that cannot sign and policies that do not compile are refused with the why."""
    out = tmp_path / "bundle.tar.gz"
    edwards = written(tmp_path / "edwards.pem", ed25519.Ed25519PrivateKey.generate())
    locked = written(tmp_path / "locked.pem", ec.generate_private_key(ec.SECP256R1()), b"secret")
    (tmp_path / "text.pem").write_text("no key")
    for key, said in (
        (edwards, "P-256"), (locked, "without a password"), (tmp_path / "text.pem", "openssl"),
        (tmp_path / "absent.pem", "No such file"),
    ):  # fmt: skip
        code, _, error = build(policy, "--signing-key", key, "-o", out)
        assert (code, said in " ".join(error.split())) == (2, True), error
    (policy / "allow.rego").write_text("package envoy.authz\n\nallow := nobody\n")
    code, _, error = build(policy, "-o", out)
    assert code == 2
    assert "nobody" in error
    assert not out.exists()


def test_only_the_added_file_is_passed_over(tmp_path):
    """A module of the policy's own whose name ends alike is part of it, with what it denies."""
    for name in ("allow.rego", "no_authz_batch.rego", "deep/no_authz_batch.rego"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("package envoy.authz\n")
    (tmp_path / "authz_batch.rego").write_text("package authz_batch\n")
    assert set(source.load(tmp_path).modules) == {
        "allow.rego", "no_authz_batch.rego", "deep/no_authz_batch.rego"
    }  # fmt: skip
