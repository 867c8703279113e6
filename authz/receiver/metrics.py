"""The receiver's metrics (Prometheus)."""

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from authz.record import Record

STREAMS = Gauge("authz_receiver_streams", "Open streams", ["from"])
ENTRIES = Counter(
    "authz_receiver_access_log_entries_total", "Access log entries by place in their stream", ["at"]
)
LOST_MESSAGES = Counter(
    "authz_receiver_unreadable_messages_total", "Access log messages that could not be parsed"
)
ENVOY_UP = Gauge("authz_receiver_envoy_up", "Whether this admin interface answered", ["admin"])
BLOCKS = Gauge("authz_receiver_blocks", "Blocks held, those that expired lately included")
FINDINGS = Gauge("authz_receiver_findings", "Findings held, those that expired lately included")
RECORDS = Counter("authz_receiver_records_total", "Records taken into the journal", ["from"])
STORED = Counter("authz_receiver_stored_total", "Records stored in ClickHouse and read back")
WAITING = Gauge("authz_receiver_waiting", "Records in the journal that are not stored yet")
JOURNAL_FILL = Gauge("authz_receiver_journal_fill_ratio", "Used part of the journal's bound")
JOURNAL_FAILING = Gauge(
    "authz_receiver_journal_failing",
    "1 while nothing is taken in: the journal or its disk is full or failing",
)
STORE_ERRORS = Counter("authz_receiver_store_errors_total", "Attempts to store that failed")
TREE_SIZE = Gauge("authz_receiver_tree_size", "Size of the last checkpoint stored")
ANCHORED = Gauge("authz_receiver_anchored_size", "Size of the newest checkpoint there", ["anchor"])
ANCHOR_UP = Gauge(
    "authz_receiver_anchor_up",
    "Whether this anchor or witness took the last checkpoint",
    ["anchor"],
)
STORE_SECONDS = Histogram("authz_receiver_store_seconds", "Time to store and read back a batch")
GAPS = Counter(
    "authz_receiver_gaps_total", "Notices of what does not add up, by the kind of gap", ["kind"]
)


def count_gaps(told: Iterable[Record]) -> None:
    """Count those of `told`, notices that are durable, that tell a gap."""
    for record in told:
        if record.get("event") == "gap":
            GAPS.labels(record.get("rule", "")).inc()
