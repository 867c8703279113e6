"""The console's metrics (Prometheus)."""

from prometheus_client import Counter, Histogram

REQUESTS = Counter("authz_console_requests_total", "Requests answered", ["what", "status"])
SECONDS = Histogram("authz_console_seconds", "Time to answer", ["what"])
