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
#: The most bytes that it may answer.
_LONGEST = 1 << 16


#: Seconds between two tries after a daemon has died before its answer.
RETRY_INTERVAL = 0.05


class CannotJoin(CCProxyError):
    """
    There is no daemon that serves the pod.

    @ivar given: whether a daemon may have the socket nevertheless, so that it has to be revoked.
    """

    given = False


class _NoAnswer(Exception):
    """The daemon may have taken the socket, and has ended before it has said so."""


def join(listening: ListeningSocket, admin: str | None = None) -> None:
    """
    Hand a listening socket to the host's daemon. If the daemon dies before its answer, ask the next
    one, which knows whether it has the socket already.

    @param admin: the path of the daemon's admin socket.
    @raise CannotJoin: it does not take it.
    """
    admin = admin or os.environ.get(ADMIN_VARIABLE) or DEFAULT_ADMIN_SOCKET
    deadline = time.monotonic() + TIMEOUT
    given = False
    while True:
        reason = f"the daemon at {admin} has not answered within {TIMEOUT:g} s"
        try:
            answer = _offer(listening, admin, deadline)
        except _NoAnswer:
            given = True
        except TimeoutError:
            given = True
            break
        except OSError as error:
            reason = f"no daemon at {admin}: {error}"
            if not given:
                break
        else:
            status = answer.partition(b"\r\n")[0].split()
            if len(status) > 1 and status[1] == b"200":
                return
            text = answer.rpartition(b"\r\n\r\n")[2].decode(errors="replace").strip()
            reason = f"the daemon at {admin} does not take it: {text[:200]}"
            break
        if time.monotonic() > deadline:
            break
        time.sleep(RETRY_INTERVAL)
    problem = CannotJoin(reason)
    problem.given = given
    raise problem from None


def _offer(listening: ListeningSocket, admin: str, deadline: float) -> bytes:
    """
    Offer the socket to the daemon once.

    @param deadline: in seconds of the monotonic clock.
    @return: the answer, with its first line at least.
    @raise OSError: there is no daemon.
    @raise TimeoutError: it has not answered in time.
    @raise _NoAnswer: it has ended before its answer.
    """
    descriptor = listening.socket.fileno()
    offer = {"path": listening.path, "inode": inodeOf(descriptor), "until": deadline - MARGIN}
    body = json.dumps(offer).encode()
    head = (
        "POST /v1/join HTTP/1.1\r\nHost: ccproxy\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(admin)
        connection.sendmsg([head.encode() + body], [rights])
        answer = b""
        while len(answer) < _LONGEST:
            # At the deadline, take what has come until then.
            connection.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                data = connection.recv(_LONGEST)
            except BlockingIOError:
                raise TimeoutError from None
            except ConnectionError:
                data = b""
            if not data:
                if b"\r\n" not in answer:
                    raise _NoAnswer
                return answer
            answer += data
    raise TimeoutError
