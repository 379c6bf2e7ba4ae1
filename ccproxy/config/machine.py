"""
What settings name and this machine must have: what nobody can tell from the settings alone.
"""

from __future__ import annotations

import socket

from ..net.binding import groupNumber
from .settings import BadSetting, Settings, hostAndPort


def checkMachine(settings: Settings) -> None:
    """
    Look whether this machine has the group of the client socket and the address for metrics. A
    host's name is looked up, which may take its time.

    @raise BadSetting: it has not.
    """
    if settings.socketGroup is not None:
        try:
            groupNumber(settings.socketGroup)
        except KeyError:
            raise BadSetting(
                "socketGroup", f"there is no group {settings.socketGroup!r} on this machine"
            ) from None
    if settings.metricsAddress is not None:
        host, _ = hostAndPort(settings.metricsAddress)
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                # Whether the port is free says nothing: a daemon may run.
                probe.bind((host, 0))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BadSetting(
                "metricsAddress",
                f"{host!r} is no address of this machine ({reason}); leave the host out for all",
            ) from None
