"""What expires and what is held: rules, sets of indexes, and the notices that tell of it. Pure.

Nothing is forgotten without a notice: an `expired` notice says which records of which log may be
gone from then on, and under what root their hashes stay.
"""

from authz.retention.notices import (
    EVENTS,
    KEPT_EVENTS,
    Expired,
    Expiry,
    Hold,
    expired_notice,
    expiry_of,
    hold_notice,
    holds_in_force,
    release_notice,
)
from authz.retention.rule import SIX_YEARS, Rule, partition_of
from authz.retention.spans import Spans

__all__ = [
    "EVENTS",
    "KEPT_EVENTS",
    "SIX_YEARS",
    "Expired",
    "Expiry",
    "Hold",
    "Rule",
    "Spans",
    "expired_notice",
    "expiry_of",
    "hold_notice",
    "holds_in_force",
    "partition_of",
    "release_notice",
]
