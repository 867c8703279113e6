"""What is said to a witness, and what it answers: C2SP tlog-witness, ``add-checkpoint``. Pure."""

import base64
from collections.abc import Sequence

from authz.errors import UnavailableError
from authz.ledger import NoteError, Verifier, add_signatures

_WHY = {
    400: "it takes the request for malformed",
    403: "it does not accept the log's key: give it the one that signs now",
    404: "it does not know this log: its operator has to add origin and key",
    409: "it had another size than it just said",
    422: "this log does not go on from what it saw before: it is forked, or its tiles are changed",
    429: "it wants to be asked less often",
}


class WitnessError(UnavailableError):
    """A witness did not cosign; the text says why."""


def request(old: int, proof: Sequence[bytes], note: str) -> bytes:
    """The body of the request that asks to cosign `note`, which goes on from size `old`."""
    lines = [f"old {old}", *(base64.b64encode(value).decode() for value in proof)]
    return ("\n".join(lines) + "\n\n" + note).encode()


def refusal(status: int, body: bytes, size: int) -> int:
    """The size that the witness has, if that is all that was wrong with asking for `size`. Raises
    `WitnessError` for any other answer that is no cosignature."""
    if status == 409 and body.rstrip(b"\n").isdigit() and len(body) < 20:
        known = int(body)
        if known > size:
            raise WitnessError(
                f"it has seen {known} records of this log, of which {size} are stored: this is an"
                " older copy, or somebody else signs with the log's key"
            )
        return known
    raise WitnessError(_WHY.get(status, f"it answers with status {status}"))


def cosignature(note: str, body: bytes, key: Verifier) -> str:
    """The witness's lines under `note`, in its answer. Raises `WitnessError` for an answer without
    its signature."""
    try:
        cosigned = add_signatures(note, [body.decode()], [key])
    except (NoteError, UnicodeDecodeError) as error:
        raise WitnessError(f"its answer is no cosignature by {key}: {error}") from None
    return cosigned.removeprefix(note)
