"""What people ask the log, as plain values: for the commands, the console and exports."""

from authz.report.lookup import Lookup, Request, look_up

__all__ = ["Lookup", "Request", "look_up"]
