"""The whole configuration: one YAML file, environment ``AUTHZ_...`` over it, options over both.

Every key has its meaning beside it; ``authz config`` prints them. A key or value that is wrong is
an error that names it, its line and the mend.
"""

from authz.config.addresses import is_local
from authz.config.file import describe, load
from authz.config.keys import (
    Address,
    Config,
    Console,
    Decided,
    Disclosure,
    ExtAuthz,
    HostPort,
    Oidc,
    Origin,
    Receiver,
    Served,
    Watch,
    Webhook,
    Witness,
)

__all__ = [
    "Address",
    "Config",
    "Console",
    "Decided",
    "Disclosure",
    "ExtAuthz",
    "HostPort",
    "Oidc",
    "Origin",
    "Receiver",
    "Served",
    "Watch",
    "Webhook",
    "Witness",
    "describe",
    "is_local",
    "load",
]
