"""ClickHouse's own servers out of the wheel ``chdb-core``, for one process that does nothing else.

This is a private entry point of the engine, so the version is pinned, and all that knows of it is
in this file. `serve` blocks until standard input ends, which is the clean stop.
"""

import ctypes
import importlib
import importlib.machinery
import os
import signal
import sys
import types

_PR_SET_PDEATHSIG = 1
_START = (
    "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP;"
    " SELECT * FROM file(stdin, LineAsString) FORMAT Null"
)


def serve(data_dir: str) -> None:
    """Serve the database in `data_dir`; ``clickhouse-local.xml`` is in the working directory."""
    # If the parent is killed outright, so is this: it must not outlive its supervisor.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # chdb/__init__.py would start an engine of its own, and then no server can: load the
    # extension alone, under a bare package that only knows where it is.
    spec = importlib.machinery.PathFinder.find_spec("chdb")
    if spec is None or spec.submodule_search_locations is None:
        sys.exit("the embedded ClickHouse is not installed; run: pip install 'authz[demo]'")
    package = types.ModuleType("chdb")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["chdb"] = package
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_DEEPBIND)
    engine = importlib.import_module("chdb._chdb")
    engine.query(_START, "TSV", path=data_dir)


if __name__ == "__main__":
    serve(sys.argv[1])
