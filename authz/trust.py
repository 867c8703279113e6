"""Trust files: which logs there must be, and whose signatures count."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from authz.errors import UsageError
from authz.ledger import NoteError, Verifier


@dataclass(frozen=True, slots=True)
class TrustedLog:
    origin: str
    keys: tuple[Verifier, ...]


def load_trust(path: Path) -> list[TrustedLog]:
    """The logs in a trust file. Raises `UsageError` that names what is wrong."""
    try:
        content = yaml.safe_load(path.read_text())
        logs = [
            TrustedLog(str(log["origin"]), tuple(Verifier.parse(str(key)) for key in log["keys"]))
            for log in content["logs"]
        ]
    except OSError as error:
        raise UsageError(f"--trust {path}: {error.strerror}") from None
    except NoteError as error:
        raise UsageError(f"--trust {path}: {error}") from None
    except (KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError):
        raise UsageError(
            f"--trust {path}: want 'logs:' with 'origin:' and 'keys:' of each log"
        ) from None
    if not logs:
        raise UsageError(f"--trust {path}: names no log, so there is nothing to verify")
    return logs


def load_expiry_writers(path: Path) -> tuple[Verifier, ...] | None:
    """Whose notices let records expire, by a trust file's `expiry_writers`; None where it does not
    say. Raises `UsageError`."""
    try:
        content = yaml.safe_load(path.read_text())
        if content.get("expiry_writers") is None:
            return None
        return tuple(Verifier.parse(str(key)) for key in content["expiry_writers"])
    except OSError as error:
        raise UsageError(f"--trust {path}: {error.strerror}") from None
    except NoteError as error:
        raise UsageError(f"--trust {path}: expiry_writers: {error}") from None
    except (AttributeError, TypeError, UnicodeDecodeError, yaml.YAMLError):
        raise UsageError(
            f"--trust {path}: expiry_writers: want a list of keys, as `authz retention show` prints"
        ) from None
