"""What an address says of who reaches it."""

import ipaddress


def is_local(listen: str) -> bool:
    """Whether only this host reaches it."""
    if listen.startswith("unix://"):
        return True
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
