"""Trust files: which logs there must be, whose signatures count, and who else must have seen them.

An auditor writes it, and what it asks for must be there: a key that is unknown, or an anchor that
cannot be read, is an error and never passed over.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from authz.errors import UsageError
from authz.ledger import NoteError, Verifier


@dataclass(frozen=True, slots=True)
class TrustedLog:
    """A log that must be there. Any of `keys` may have signed its checkpoints; each directory of
    `anchors` must hold checkpoints of it; `quorum` of the `witnesses` must have cosigned one."""

    origin: str
    keys: tuple[Verifier, ...]
    anchors: tuple[Path, ...] = ()
    witnesses: tuple[Verifier, ...] = ()
    quorum: int = 0


def load_trust(path: Path) -> list[TrustedLog]:
    """The logs in a trust file; its relative directories are beside it. Raises `UsageError` that
    names what is wrong and the mend."""
    return [log.trusted(path.parent) for log in _load(path).logs]


def load_expiry_writers(path: Path) -> tuple[Verifier, ...] | None:
    """Whose notices let records expire, by a trust file's `expiry_writers`; None where it does not
    say. Raises `UsageError`."""
    return _load(path).expiry_writers  # type: ignore[return-value]


def _load(path: Path) -> "_Trust":
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"--trust {path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise UsageError(
            f"--trust {path}: not YAML; want 'logs:' with 'origin:' and 'keys:' of each log"
        ) from None
    try:
        return _Trust.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # A list without its wrong items is too short: that only follows.
        items = [item for item in found if item["type"] != "too_short"] or found
        wrong = "\n".join(_explain(item) for item in items)
        raise UsageError(f"--trust {path}: {wrong}") from None


def _key(text: str, *, cosigns: bool) -> Verifier:
    try:
        key = Verifier.parse(text)
    except NoteError as error:
        raise ValueError(str(error)) from None
    if key.cosigns != cosigns:
        raise ValueError(
            "want a witness's key (C2SP tlog-cosignature, type 0x04), not a log's"
            if cosigns
            else "want a log's key (type 0x01), not a witness's: that one belongs under 'witnesses'"
        )
    return key


def log_key(text: str) -> Verifier:
    """A verifier key that signs a log's checkpoints. Raises `ValueError`."""
    return _key(text, cosigns=False)


def witness_key(text: str) -> Verifier:
    """A verifier key of a witness. Raises `ValueError`."""
    return _key(text, cosigns=True)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Witnesses(_Section):
    quorum: int = Field(ge=1)
    keys: tuple[Annotated[str, AfterValidator(witness_key)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _reachable(self) -> "_Witnesses":
        different = len({str(key) for key in self.keys})
        if self.quorum > different:
            raise ValueError(
                f"quorum: {self.quorum} of {different} witnesses cannot be reached; lower it, or"
                " name more keys"
            )
        return self


class _Log(_Section):
    origin: str = Field(min_length=1)
    keys: tuple[Annotated[str, AfterValidator(log_key)], ...] = Field(min_length=1)
    anchors: tuple[Path, ...] = ()
    witnesses: _Witnesses | None = None

    def trusted(self, beside: Path) -> TrustedLog:
        anchors = tuple(beside / anchor for anchor in self.anchors)
        log = TrustedLog(self.origin, self.keys, anchors)  # type: ignore[arg-type]
        if self.witnesses is None:
            return log
        witnesses = tuple(dict.fromkeys(self.witnesses.keys))
        return TrustedLog(log.origin, log.keys, anchors, witnesses, self.witnesses.quorum)  # type: ignore[arg-type]


class _Trust(_Section):
    logs: tuple[_Log, ...]
    expiry_writers: tuple[Annotated[str, AfterValidator(log_key)], ...] | None = None

    @model_validator(mode="after")
    def _different(self) -> "_Trust":
        if not self.logs:
            raise ValueError("names no log, so there is nothing to verify")
        [(origin, count)] = Counter(log.origin for log in self.logs).most_common(1)
        if count > 1:
            raise ValueError(f"{origin} is there twice; put its keys under one 'origin'")
        return self


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("model_type", "tuple_type", "missing"):
        want = "want 'logs:' with 'origin:' and 'keys:' of each log"
        return f"{place}: {error['msg']}; {want}" if place else want
    if error["type"] == "extra_forbidden":
        return f"{place} is no key here; known: {', '.join(_known(error['loc']))}"
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_type" and "keys" in error["loc"]:
        text = "want a key as C2SP writes it: <name>+<key id>+<base64>"
    return f"{place}: {text}" if place else text


def _known(place: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = _Trust
    if "witnesses" in place[:-1]:
        section = _Witnesses
    elif "logs" in place[:-1]:
        section = _Log
    return sorted(section.model_fields)
