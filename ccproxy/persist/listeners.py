"""
The listening sockets that outlive a process: the client socket, and those of pods that joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Optional, Protocol

import attrs

from ..net.binding import ListeningSocket
from ..net.listening import UNIXListener
from ..net.passed import inodeOf
from ..net.rights import Received


@attrs.frozen
class ListeningForm:
    """
    A listening socket.

    @ivar key: its inode.
    @ivar path: its path.
    @ivar made: device and inode of its file, which tell it from other files at that path.
    @ivar served: whether the VM of a pod was registered on it.
    """

    key: int
    path: str
    made: Optional[tuple[int, int]] = None
    served: bool = False


def listeningForm(listener: UNIXListener | None) -> ListeningForm | None:
    """Describe the client socket, or return L{None} if this daemon has not made its file."""
    if listener is None or listener.made is None:
        return None
    return ListeningForm(inodeOf(listener.fileno()), listener.path, listener.made)


class JoinedPods(Protocol):
    """
    The pods of other processes that have joined this daemon.

    @ivar received: descriptors that came over the admin socket.
    @ivar listeners: the listeners of the pods, by path.
    @ivar whenChanged: called when a pod has joined or left.
    """

    whenChanged: Callable[[], object] | None

    @property
    def received(self) -> Received: ...

    @property
    def listeners(self) -> Mapping[str, UNIXListener]: ...

    def join(self, path: str, inode: int, until: float | None = None) -> None:
        """
        Serve a pod on a socket that came with the request.

        @param inode: the socket's.
        @param until: the monotonic time in seconds until when the socket may be taken.
        @raise ccproxy.errors.CCProxyError: the socket did not come, or no pod can be served on it.
        """

    def serve(self, listening: ListeningSocket, served: bool = False) -> None:
        """
        Serve a pod.

        @param served: whether its VM was registered before.
        """

    def forms(self) -> list[ListeningForm]:
        """Describe the sockets of all pods."""
