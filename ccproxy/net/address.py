"""
How the proxy's socket is named: C{unix://PATH}, or just the path.
"""

from __future__ import annotations

from ..wire.codes import MAX_PATH

#: Where the proxy listens if nobody says otherwise.
DEFAULT_SOCKET = "/var/run/clear-containers/proxy.sock"
#: The same, without the link that /var/run is, as systemd names the socket that it passes.
_DEFAULT_SOCKETS = (DEFAULT_SOCKET, DEFAULT_SOCKET.removeprefix("/var"))
#: Where it can be asked and told by the operator, with that socket.
DEFAULT_ADMIN_SOCKET = "/run/ccproxy/admin.sock"


def socketPath(url: str) -> str:
    """
    The path of a socket.

    @param url: C{unix://PATH}, or just the path.
    @raise ValueError: it is of another kind, empty, or too long for a socket.
    """
    path = url.removeprefix("unix://")
    if not path or "://" in path or "\0" in path:
        raise ValueError(f"{url!r} does not name a UNIX socket: give unix://PATH or a path")
    if len(path.encode(errors="surrogateescape")) > MAX_PATH:
        raise ValueError(f"{path!r} is too long for a socket: at most {MAX_PATH} bytes")
    return path


def adminPath(path: str) -> str:
    """Where the admin socket is, unless somebody says otherwise, with the client socket there."""
    return DEFAULT_ADMIN_SOCKET if path in _DEFAULT_SOCKETS else f"{path}.admin"
