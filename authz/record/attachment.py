"""What a record may carry along: bytes kept beside the log, whose SHA-256 is in the leaf.

Two kinds of record do. A decision may bring its input document, sealed: `sealed` names it. A
``policy_loaded`` notice may bring the policy's archive: `policy_revision` names it.

A sealed input begins with the id of the key that opens it: eight hexadecimal digits and a dot. The
hash is over all of it.
"""

import re

from authz.record.schema import Record

_KEY_ID = re.compile(rb"([0-9a-f]{8})\.")


def attachment_hash(record: Record) -> str:
    """The SHA-256 (hexadecimal) that the attachment of `record` must have; empty if it may have
    none."""
    if record.get("kind") == "decision":
        return str(record.get("sealed", ""))
    return str(record.get("policy_revision", "")) if is_policy(record) else ""


def is_policy(record: Record) -> bool:
    """Whether the attachment of `record`, if it has one, is the archive of a policy."""
    return record.get("kind") == "notice" and record.get("event") == "policy_loaded"


def sealing_key_id(sealed: bytes) -> str:
    """The id of the key that a sealed input was sealed with; empty if it does not say."""
    said = _KEY_ID.match(sealed)
    return said[1].decode() if said else ""
