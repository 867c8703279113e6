"""The Check server's metrics (Prometheus)."""

from prometheus_client import Counter, Gauge, Histogram

_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)

CHECKS = Counter("authz_checks_total", "Checks answered", ["outcome", "reason_code", "enforced"])
SECONDS = Histogram("authz_check_seconds", "Time to answer a Check", buckets=_BUCKETS)
STAGES = Histogram(
    "authz_check_stage_seconds",
    "Time of each stage of Checks answered together: parse, decide, record, answer",
    ["stage"],
    buckets=_BUCKETS,
)
BATCHES = Histogram(
    "authz_check_batch_size", "Checks answered together", buckets=(1, 2, 4, 8, 12, 16, 24, 32)
)
IN_FLIGHT = Gauge("authz_checks_in_flight", "Checks being decided")
SHED = Counter("authz_checks_shed_total", "Checks denied because too many were under way")
DISCLOSURES = Counter(
    "authz_disclosures_total",
    "Answers read for whose data they hold: complete, or why they are not resolved",
    ["outcome"],
)
JOURNAL_FILL = Gauge("authz_journal_fill_ratio", "Used part of the journal's bound")
POLICY = Gauge("authz_policy_loaded_info", "The policy revision in force", ["revision"])
STALE = Gauge("authz_policy_stale", "1 when the policy cannot be read, from its files or its OPA")
DRY_RUN = Gauge("authz_dry_run", "1 when decisions are recorded but not enforced")
