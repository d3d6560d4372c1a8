"""Which network addresses only this machine reaches."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, with or without the brackets of IPv6, leads to this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
