"""
C{cc-proxy -uri} with C{join}: the pod is served by the daemon of this host.
"""

from __future__ import annotations

import json
import os
import socket
import time
from array import array

from ..errors import CCProxyError
from ..net.address import DEFAULT_ADMIN_SOCKET
from ..net.binding import ListeningSocket
from ..net.passed import inodeOf

#: Where the daemon's admin socket is, if not at the default place.
ADMIN_VARIABLE = "CCPROXY_ADMIN_SOCKET"
#: Seconds that the daemon may take to answer, in all.
TIMEOUT = 3.0
#: Seconds before that after which it must not take the socket any more: its answer comes in time.
MARGIN = 0.5
#: Seconds in which a socket gives what has come already.
_AT_ONCE = 0.001
#: The most bytes that it may answer.
_LONGEST = 1 << 16


class CannotJoin(CCProxyError):
    """There is no daemon that serves the pod."""


def join(listening: ListeningSocket, admin: str | None = None) -> None:
    """
    Hand a listening socket to the host's daemon.

    @param admin: the path of the daemon's admin socket.
    @raise CannotJoin: it does not take it.
    """
    admin = admin or os.environ.get(ADMIN_VARIABLE) or DEFAULT_ADMIN_SOCKET
    descriptor = listening.socket.fileno()
    deadline = time.monotonic() + TIMEOUT
    offer = {"path": listening.path, "inode": inodeOf(descriptor), "until": deadline - MARGIN}
    body = json.dumps(offer).encode()
    head = (
        "POST /v1/join HTTP/1.1\r\nHost: ccproxy\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(admin)
            connection.sendmsg([head.encode() + body], [rights])
            answer = b""
            while len(answer) < _LONGEST:
                # Even if it is late by now: take what has come in time.
                connection.settimeout(max(_AT_ONCE, deadline - time.monotonic()))
                data = connection.recv(_LONGEST)
                if not data:
                    break
                answer += data
            else:
                raise TimeoutError
    except TimeoutError:
        raise CannotJoin(f"the daemon at {admin} has not answered within {TIMEOUT:g} s") from None
    except OSError as error:
        raise CannotJoin(f"no daemon at {admin}: {error}") from error
    status = answer.partition(b"\r\n")[0].split()
    text = answer.rpartition(b"\r\n\r\n")[2].decode(errors="replace").strip()
    if len(status) < 2 or status[1] != b"200":
        raise CannotJoin(f"the daemon at {admin} does not take it: {text[:200]}")
