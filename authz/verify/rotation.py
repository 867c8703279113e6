"""The rotations of the logs' keys, checked as their records come by. Pure."""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence

from authz.keys import rotated, rotation_text
from authz.ledger import NoteError, Verifier
from authz.record import Record, details_of


class Rotations:
    """Fed every log's records, each log's in order; `trusted` has the keys that count for each."""

    def __init__(self, trusted: Mapping[str, Sequence[Verifier]]) -> None:
        self._trusted = trusted
        self._keys: dict[str, list[tuple[int, Verifier]]] = {}

    def add(self, record: Record, origin: str) -> Iterator[str]:
        """Yields what is wrong with `record` of log `origin`, if it is a rotation."""
        named = rotated(record)
        if named is None:
            return
        try:
            old, new = (Verifier.parse(key) for key in named)
            details = details_of(record)
            signatures = [
                base64.b64decode(str(details.get(name, "")), validate=True)
                for name in ("old_signature", "new_signature")
            ]
        except (NoteError, binascii.Error, ValueError):
            yield "a rotation of the log's key is malformed"
            return
        for key, signature in zip((old, new), signatures, strict=True):
            try:
                key.verify(rotation_text(origin, *named), signature)
            except NoteError:
                yield f"the rotation of the log's key is not signed by {key}"
            if key not in self._trusted[origin]:
                yield f"the rotation names key {key}, which the trust file does not accept"
        index = record.get("index", 0)
        assert isinstance(index, int)
        keys = self._keys.setdefault(origin, [(-1, old)])
        if keys[-1][1] != old:
            yield f"the rotation is from key {old}; the one before it was to {keys[-1][1]}"
        if new in [key for _, key in keys]:
            yield f"the rotation is to key {new}, which the log had before"
        keys.append((index, new))

    def signs(self, origin: str, size: int) -> Verifier | None:
        """The key whose signature a checkpoint of `size` must bear; None if any trusted one may,
        since there was no rotation. Ask once the records up to there have been added."""
        found = None
        for index, key in self._keys.get(origin, ()):
            if index < size:
                found = key
        return found
