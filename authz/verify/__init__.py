"""The whole check of a log: every leaf, root, signature and sequence, recomputed."""

from authz.verify.report import Finding, LogReport, Report
from authz.verify.store import verify_store

__all__ = ["Finding", "LogReport", "Report", "verify_store"]
