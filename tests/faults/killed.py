"""Runs ``authz`` and kills it (SIGKILL) right before or after a call of one of its functions.

python killed.py MODULE:NAME before|after COUNT ARGUMENT...
"""

import functools
import importlib
import os
import signal
import sys
from typing import Any


def main() -> None:
    place, when, count, *arguments = sys.argv[1:]
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, last = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    function = getattr(owner, last)
    left = int(count)

    @functools.wraps(function)
    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, last, killing)
    from authz.cli import main as authz

    sys.argv = ["authz", *arguments]
    authz()


if __name__ == "__main__":
    main()
