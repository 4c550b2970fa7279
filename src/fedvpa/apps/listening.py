"""Who may reach a service of this package: this machine without more ado, others with a token."""

from __future__ import annotations

import ipaddress

from fedvpa.errors import UserError

SHORTEST_TOKEN = 8


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address (a name or an IP address, without a port)."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(host: str, token: str | None) -> None:
    """Holds a service to that.

    Raises:
        UserError: the token is short or no plain text, or it is missing where others can reach the service.
    """
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        remedy = 'make one with `python -c "import secrets; print(secrets.token_urlsafe())"`'
        raise UserError(f"must be {SHORTEST_TOKEN} printable ASCII characters or more", remedy, field="--token")
    if token is None and not is_local(host):
        remedy = "give --token (or FEDVPA_TOKEN), or leave --host at 127.0.0.1"
        raise UserError(f"{host} can be reached by others, and there is no token", remedy, field="--host")
