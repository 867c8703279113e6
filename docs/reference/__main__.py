"""``python -m docs.reference``: write each page of the reference beside this file."""

from pathlib import Path

from docs.reference import api, commands, configuration, metrics

HERE = Path(__file__).parent


def pages() -> dict[Path, str]:
    """What each file is to hold."""
    made = {
        "api.md": api.page(),
        "commands.md": commands.page(),
        "configuration.md": configuration.page(),
        "metrics.md": metrics.page(),
    }
    return {HERE / name: text for name, text in made.items()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
