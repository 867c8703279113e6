"""The whole program, where typer looks for it."""

from authz.cli import program

app = program()
