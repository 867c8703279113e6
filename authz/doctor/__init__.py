"""``authz doctor``: looks at what stands around authz, and says what is wrong and the mend.

A check is a callable without arguments that returns findings (`findings.Check`). To add one:

- about Envoy's configuration: a function ``(Envoy) -> Iterator[Finding]`` in one of
  `envoy_authz`, `envoy_http`, and its name in that module's ``CHECKS``;
- about anything else: a function with what it needs, bound by `functools.partial` in
  `authz.cli.doctor`.
"""

from authz.doctor.findings import Check, Finding, Level, exit_code, look

__all__ = ["Check", "Finding", "Level", "exit_code", "look"]
