"""Runs ``authz`` under strace, which attaches when everything is imported: that makes for quick
starts.

python traced.py STRACE_OPTION... -- ARGUMENT...
"""

import subprocess
import sys
import time
from pathlib import Path

import authz.serve.receiver  # noqa: F401 - what takes long
from authz.cli import main


def trace(options: list[str]) -> None:
    """Returns once strace is attached to this process."""
    program = ["strace", "-f", "-p", "self", *options]
    program[3] = str(Path("/proc/self").resolve().name)
    strace = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        if strace.poll() is not None:
            sys.exit("strace could not attach")
        time.sleep(0.005)


if __name__ == "__main__":
    end = sys.argv.index("--")
    trace(sys.argv[1:end])
    sys.argv = ["authz", *sys.argv[end + 1 :]]
    main()
