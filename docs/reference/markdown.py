"""What the pages have in common."""

from collections.abc import Iterable

MADE = "<!-- Made of the code by `make reference`: what is changed here is lost. -->"


def head(title: str, text: str) -> list[str]:
    return [f"# {title}", "", MADE, "", text, ""]


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A table, and the empty line behind it; a bar in a cell stays one."""
    names = list(columns)
    lines = [" | ".join(names), "|".join("---" for _ in names)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {line} |" if "---|" not in line else f"|{line}|" for line in lines] + [""]


def page(lines: Iterable[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"
