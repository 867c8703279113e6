"""The policy engine that the configuration names."""

from pathlib import Path

from authz.config import Decided
from authz.errors import UsageError
from authz.policy.embedded import EmbeddedEngine
from authz.policy.engine import Engine
from authz.policy.opa import OpaEngine, OpaOptions, is_server


def engine_of(options: Decided, decision: str) -> Engine:
    """What decides at `decision`. Raises `UsageError`."""
    if not options.policy:
        raise UsageError(
            "--policy is missing: a directory, a .rego file, a bundle .tar.gz, or the address of an"
            " OPA server (http://127.0.0.1:8181, unix:///run/opa.sock)"
        )
    if is_server(options.policy):
        opa = OpaOptions(
            options.policy, options.opa_token, options.opa_ca, options.opa_cert, options.opa_key
        )
        return OpaEngine(opa, decision)
    return EmbeddedEngine(Path(options.policy), decision)
