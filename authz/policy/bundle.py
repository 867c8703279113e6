"""A policy as a bundle for OPA servers, signed or not, made by ``opa build``.

Three modules are added to it. One is what `OpaEngine` asks several decisions by: the bundle owns
all of OPA's policy, so it cannot be loaded afterwards. One names the data: decisions carry the
revision of the policy's text, and so a change of the data alone shows in them too. And one says
what may be asked of an OPA that goes by it (``--authorization=basic``), which would else refuse
everything; a policy's own takes its place.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from authz.errors import UsageError
from authz.policy.archive import archive, revision
from authz.policy.opa import wrapper
from authz.policy.opa_process import dialect, find_opa, write
from authz.policy.source import BATCH, Policy

NAME: Final = "authz"
"""What deploy/opa/server calls the bundle. OPA puts it before the names of its modules."""

_DATA: Final = "authz_data.rego"
_API: Final = "authz_api.rego"
_OWN_API: Final = re.compile(r"^package\s+system\.authz\s*$", re.MULTILINE)
API: Final = """\
# What may be asked of the node's OPA: decisions, and which policy makes them; by kubelet and
# monitoring, how it is. Nobody may change anything, since others are decided by the same policy.
package system.authz

import rego.v1

default allow := false

allow if {
	input.method == "POST"
	input.path[0] == "v1"
	input.path[1] == "data"
}

allow if {
	input.method == "GET"
	input.path == ["v1", "policies"]
}

allow if {
	input.method == "GET"
	input.path[0] in ["health", "metrics"]
}
"""
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


@dataclass(frozen=True, slots=True)
class Bundle:
    """What was built. `policy_revision` is what decisions carry that OPA makes by it."""

    file: str
    modules: tuple[str, ...]
    revision: str
    policy_revision: str
    signed: str
    """The algorithm; empty if it is not signed."""


def build(policy: Policy, decision: str, made: Path, *, label: str, key: Path | None) -> Bundle:
    """Write the bundle `made` of `policy`, under the revision `label`, signed with `key` (PEM).

    Raises `UsageError` for a policy that does not compile or a key that cannot sign,
    `UnavailableError` without OPA.
    """
    program = find_opa()
    algorithm = _algorithm(key) if key else ""
    text = f'package authz_data\n\ndigest := "{policy.data_digest}"\n'
    added = {_DATA: text}
    if not any(map(_OWN_API.search, policy.modules.values())):
        added[_API] = API
    policy = replace(policy, modules={**policy.modules, **added})
    with tempfile.TemporaryDirectory(prefix="authz-opa-") as temporary:
        directory = Path(temporary) / "policy"
        write(policy, directory, {BATCH: wrapper(decision)})
        options = dialect(program, directory)
        if key:
            options += ["--signing-key", str(key.resolve()), "--signing-alg", algorithm]
        command = [program, "build", "--bundle", *options, "--revision", label, "--output",
                   str(made.resolve()), "."]  # fmt: skip
        told = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if told.returncode:
        error = " ".join((told.stderr or told.stdout).split())[:500]
        raise UsageError(f"the bundle cannot be built: {error}")
    named = {f"{NAME}/{name}": text for name, text in policy.modules.items()}
    by = revision(archive(named))
    return Bundle(str(made), tuple(sorted(policy.modules)), label, by, algorithm)


def _algorithm(key: Path) -> str:
    try:
        private = load_pem_private_key(key.read_bytes(), None)
    except OSError as error:
        raise UsageError(f"--signing-key {key}: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError(
            f"--signing-key {key}: no private key in PEM without a password; make one with"
            " openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"
        ) from None
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in _CURVES:
        return _CURVES[private.curve.name]
    if isinstance(private, rsa.RSAPrivateKey):
        return "RS256"
    raise UsageError(f"--signing-key {key}: OPA signs with RSA, or EC over P-256, P-384 and P-521")
