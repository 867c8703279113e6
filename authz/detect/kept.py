"""What a detector has learnt, in a file, with the place in each log up to which it was."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from authz.detect.detector import Memory
from authz.errors import UnavailableError, UsageError
from authz.files import replace_file

VERSION = 2


@dataclass(slots=True)
class Kept:
    """`next` is by log the index of the first record that `memory` does not have."""

    version: int = VERSION
    next: dict[str, int] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    causes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By a finding's id, whom it is about and its cause: for what people say of it."""


@cache
def _form() -> TypeAdapter[Kept]:
    return TypeAdapter(Kept)


def load(path: Path) -> Kept | None:
    """None if there is no such file, or an older program's: then it is learnt anew. Raises
    `UsageError`."""
    try:
        kept = _form().validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except ValidationError:
        raise UsageError(
            f"{path}: not what authz watch keeps; delete it, and it learns anew from the store"
        ) from None
    return kept if kept.version == VERSION else None


def save(path: Path, kept: Kept) -> None:
    """Whole, or as it was before. Raises `UnavailableError`."""
    try:
        replace_file(path, _form().dump_json(kept))
    except OSError as error:
        raise UnavailableError(f"{path}: {error.strerror}") from None
