"""The demo's people where no identity provider is: a key set for Envoy, and everybody's token.

    python -m authz.demo.tokens DIRECTORY

makes ``jwks.json`` and, for each of them, ``NAME.jwt``. The key that signed them is nowhere.
"""

import argparse
import json
from pathlib import Path

from authz.demo.people import PEOPLE, Keys


def main() -> None:
    parser = argparse.ArgumentParser(prog="authz.demo.tokens", description="tokens of the demo")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--hours", type=int, default=24, help="how long they are good for")
    options = parser.parse_args()
    keys = Keys()
    (options.directory / "jwks.json").write_text(json.dumps(keys.jwks()))
    for person in PEOPLE.values():
        token = keys.token(person, options.hours * 3600)
        (options.directory / f"{person.name}.jwt").write_text(token)


if __name__ == "__main__":
    main()
