"""As much of clickhouse-client as deploy/clickhouse asks of it; Debian's is older than
``--queries-file`` and ``--param_NAME``.

The server of a test keeps users in files alone: it takes a statement as far as where it would
write, and refuses that (code 495). What it would have written is printed, and the next statement
follows; any other error ends this, with its code.
"""

import argparse
import os
import re
import sys
from itertools import chain
from pathlib import Path

from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

_READONLY = 495


def statements(file: Path) -> list[str]:
    """The statements of a file of ``sql``, without its comments."""
    text = re.sub(r"^--.*$", "", file.read_text(), flags=re.MULTILINE)
    return list(filter(None, map(str.strip, text.split(";"))))


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for option in ("host", "port", "user", "password"):
        parser.add_argument(f"--{option}", default=os.environ.get(f"CLICKHOUSE_{option.upper()}"))
    parser.add_argument("--database", default="default")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--query")
    what.add_argument("--queries-file", nargs="+", type=Path)
    options, others = parser.parse_known_args()
    if any(not name.startswith("--param_") for name in others[::2]):
        parser.error(f"{others}: not known")
    parameters = {
        name.removeprefix("--param_"): text
        for name, text in zip(others[::2], others[1::2], strict=True)
    }
    client = Client(
        options.host, int(options.port), options.database, options.user, options.password,
        settings={"server_side_params": True, "calculate_text_stack_trace": 0},
    )  # fmt: skip
    with client:
        files = chain.from_iterable(map(statements, options.queries_file or ()))
        for query in [options.query] if options.query else files:
            try:
                client.execute(query, parameters)
            except ServerException as error:
                told = re.search(r"Cannot (\w+ .*) (?:to|in) users_xml", error.message)
                if error.code != _READONLY or told is None:
                    print(query, error.message, sep="\n", file=sys.stderr)
                    sys.exit(error.code % 256)
                print(told[1])


if __name__ == "__main__":
    main()
