"""The command line: ``authz``. One file per group of commands."""

import os
import sys

from authz.cli import (  # noqa: F401 - each registers its commands
    block,
    break_glass,
    demo,
    doctor,
    envoy_config,
    export,
    feeds,
    findings,
    keys,
    lookup,
    migrate,
    policy,
    policy_show,
    prove,
    report,
    report_enter,
    retention,
    serve,
    verify,
    watch,
)
from authz.cli.app import app
from authz.errors import AuthzError


def main() -> None:
    """Run a command; an error a user can mend is one line on standard error, and its exit code."""
    # gRPC's C core writes to standard error by itself; what matters comes back as an exception.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app(prog_name="authz")
    except AuthzError as error:
        print(f"authz: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
