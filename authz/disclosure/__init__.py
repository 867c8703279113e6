"""Whose data an answer holds: reads HTTP response bodies as they stream by. Pure.

Nothing of a body is kept, logged or put into an error. `Answer` reads one response, `Reading` is
what is configured for all of them, `Seen` is what was found.
"""

from authz.disclosure.answer import Answer, Reading
from authz.disclosure.findings import Seen
from authz.disclosure.rules import Rule

__all__ = ["Answer", "Reading", "Rule", "Seen"]
