"""The command line: ``authz``. One file per group of commands.

A call imports the file of its own command only: it starts in a fraction of the time.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from authz.errors import AuthzError

if TYPE_CHECKING:
    import typer

_FILES = {
    "block": ("block",),
    "config": ("verify",),
    "demo": ("demo",),
    "doctor": ("doctor",),
    "envoy-config": ("envoy_config",),
    "export": ("export",),
    "feeds": ("feeds",),
    "findings": ("findings", "break_glass"),
    "init": ("init",),
    "keys": ("keys",),
    "lookup": ("lookup",),
    "migrate": ("migrate",),
    "policy": ("policy", "policy_show"),
    "prove": ("prove",),
    "report": ("report", "report_enter"),
    "retention": ("retention",),
    "serve": ("serve",),
    "unblock": ("block",),
    "verify": ("verify",),
    "verify-proof": ("prove",),
    "watch": ("watch",),
}
"""Of each command, those that register it with its subcommands."""


def program(command: str = "") -> "typer.Typer":
    """The program with `command`; with all commands if that is none of them."""
    every = [file for files in _FILES.values() for file in files]
    for file in _FILES.get(command, every):
        import_module(f"authz.cli.{file}")
    from authz.cli.app import app

    return app


def main() -> None:
    """Run a command; an error a user can mend is one line on standard error, and its exit code."""
    # gRPC's C core writes to standard error by itself; what matters comes back as an exception.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        program(*sys.argv[1:2])(prog_name="authz")
    except AuthzError as error:
        print(f"authz: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
