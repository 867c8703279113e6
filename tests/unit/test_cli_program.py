"""The program imports a command's own files only, and is the same with them."""

import subprocess
import sys

import pytest

from authz.cli import _FILES


def names(command=None):
    """The commands of the program that a new process makes for `command`, with all of theirs."""
    code = (
        "import sys, typer.main; from authz.cli import program;"
        "root = typer.main.get_command(program(*sys.argv[1:]));"
        "print(*(f'{a} {b}' for a, of in root.commands.items()"
        " for b in getattr(of, 'commands', ['-'])), sep='\\n')"
    )
    line = [sys.executable, "-c", code, *([command] if command else [])]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


@pytest.fixture(scope="module")
def every():
    return names()


def test_each_command_is_there(every):
    """Those that are known are those that the program has."""
    assert {name.split()[0] for name in every} == set(_FILES)


@pytest.mark.thorough
@pytest.mark.parametrize("command", _FILES)
def test_alone_it_is_whole(command, every):
    """With a command's own files it has all its subcommands."""
    own = {name for name in every if name.split()[0] == command}
    assert {name for name in names(command) if name.split()[0] == command} == own


def test_it_starts_without_the_others():
    """What a command does not need is not imported."""
    code = (
        "import sys; from authz.cli import program; program('migrate');"
        "print(*{'aiohttp', 'scipy', 'numpy', 'starlette', 'authz.cli.doctor'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
