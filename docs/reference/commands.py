"""Every command and option, as typer documents its own programs."""

import re
import subprocess
import sys

from docs.reference import markdown

_TEXT = """`authz --help` and `authz COMMAND --help` say the same. Exit codes: 0 done, 1 the answer
is no, 2 usage or configuration, 3 could not tell. Options go before the environment (`AUTHZ_...`),
and that before the file `--config` ([configuration](configuration.md))."""


def page() -> str:
    made = subprocess.run(
        [
            sys.executable,
            "-m",
            "typer",
            "docs.reference.program",
            "utils",
            "docs",
            "--name",
            "authz",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    text = made.partition("\n")[2].replace("&#x27;", "'").replace("&quot;", '"')
    text = text.replace("```console", "```text")
    lines, command = [], "authz"
    for line in text.splitlines():
        if heading := re.fullmatch(r"#+ `(.+)`", line):
            command = heading[1]
        listed = re.fullmatch(r"\* `([a-z][a-z-]*)`: .*", line)  # what it does is cut short there
        name = f"{command} {listed[1]}" if listed else ""
        lines.append(f"* [`{name}`](#{name.replace(' ', '-')})" if listed else line)
    return markdown.page([*markdown.head("Commands", _TEXT), *lines])
