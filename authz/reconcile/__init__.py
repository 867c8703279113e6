"""Decisions against accesses, and accesses against what is told of their answers: the count that
must come out even. Pure, and fed in log order.

Matches are by `decision_id` only. What is held is what is unmatched, or has only just met, so
memory follows requests under way (and gaps), not history.

`Reconciler` follows one log. Its records are counted in tallies, one after another: the receiver
has one for each interval, closes it when the grace time is over and tells it in the log; a verifier
closes them where the log says, and so must count the same. What a closed tally leaves unmatched is
looked for elsewhere: by the receiver in the database, by a verifier in `Rest`.
"""

from authz.reconcile.halves import RECONCILED, Half, Halves, Left, half_of, judge, undisclosed
from authz.reconcile.reconciler import REPEATED_US, SECOND, Reconciler
from authz.reconcile.rest import Rest
from authz.reconcile.tally import COUNTS, MOST_NAMED, Gap, Gaps, Tally
from authz.reconcile.writers import Writers

__all__ = [
    "COUNTS", "MOST_NAMED", "RECONCILED", "REPEATED_US", "SECOND", "Gap", "Gaps", "Half", "Halves",
    "Left", "Reconciler", "Rest", "Tally", "Writers", "half_of", "judge", "undisclosed",
]  # fmt: skip
