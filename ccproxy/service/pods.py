"""
Pods that have joined this daemon: sockets that C{cc-proxy -uri} has bound and handed over.

Each serves one VM, as the process would have that bound it, and goes when that VM was unregistered.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.logger import Logger

from ..core.context import Wait, cancel
from ..core.registry import Registry
from ..errors import CCProxyError
from ..net.binding import ListeningSocket, socketFile
from ..net.listening import UNIXListener
from ..net.passed import Passed, inodeOf
from ..net.polling import Poller
from ..net.protocols import ProxyFactory
from ..net.rights import Received
from ..persist.listeners import ListeningForm

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds between two looks at which VMs are still there.
LOOK = 1.0


class CannotJoin(CCProxyError):
    """A socket is none that a pod can be served on."""


class Pods(Service):
    """
    @ivar received: descriptors that came over the admin socket.
    @ivar listeners: those that accept the clients of pods, by their paths.
    @ivar whenChanged: called when there are others.
    """

    log = Logger()

    def __init__(self, registry: Registry, poller: Poller, reactor: Any) -> None:
        self.received = Received()
        self.listeners: dict[str, UNIXListener] = {}
        self.whenChanged: Callable[[], object] | None = None
        self._registry = registry
        self._poller = poller
        self._reactor = reactor
        self._look: Wait | None = None

    def startService(self) -> None:
        """Look after them."""
        super().startService()
        self._look = self._reactor.callLater(LOOK, self._check)

    def stopService(self) -> None:
        """Serve them no more."""
        super().stopService()
        cancel(self._look)
        self.received.close()
        for path in list(self.listeners):
            self._close(path)

    def join(self, path: str, inode: int, until: float | None = None) -> None:
        """
        Serve a pod on a socket that came with the request.

        @param until: until when it may be taken, on the clock that all processes share.
        @raise CannotJoin: it did not come, or is none to serve on.
        """
        descriptor = self.received.take(inode)
        listener = self.listeners.get(path)
        if listener is not None and inodeOf(listener.fileno()) == inode:
            # The daemon before has taken it, and died before its answer arrived.
            if descriptor is not None:
                os.close(descriptor)
            return
        if descriptor is None:
            raise CannotJoin(f"{path}: no socket came with the request")
        if until is not None and time.monotonic() > until:
            os.close(descriptor)
            raise CannotJoin(f"{path}: the request comes too late, the pod is served alone")
        made = Passed(descriptor, path, inode).asSocket()
        if made is None:
            Passed(descriptor, path, inode).close()
            raise CannotJoin(f"{path}: what came with the request is no UNIX stream socket")
        listens = made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not listens or made.getsockname() != path:
            made.close()
            raise CannotJoin(f"{path}: the socket that came with the request listens elsewhere")
        self.serve(ListeningSocket(made, path, socketFile(path)))
        self.log.info("a pod has joined on {path}", event="pod-joined", path=path)

    def serve(self, listening: ListeningSocket, served: bool = False) -> None:
        """
        Serve a pod.

        @param served: its VM has been registered already.
        """
        path = listening.path
        if path in self.listeners:
            self._close(path)  # somebody has made the socket anew
        if served:
            self._registry.urls.add(_url(path))
        factory = ProxyFactory(self._registry, _url(path))
        listener = UNIXListener(self._poller, path, factory, taken=listening, replaces=False)
        listener.startListening()
        listener.whenRevoked = lambda: self._revoked(path)
        self.listeners[path] = listener
        self._changed()

    def forms(self) -> list[ListeningForm]:
        """All of them, for another process."""
        return [
            ListeningForm(inodeOf(listener.fileno()), path, listener.made, self._served(path))
            for path, listener in self.listeners.items()
        ]

    def _check(self) -> None:
        """A pod whose VM was unregistered has ended."""
        urls = {vm.url for vm in self._registry.vms.values()}
        for path in list(self.listeners):
            if self._served(path) and _url(path) not in urls:
                self.log.info("the pod on {path} has ended", event="pod-left", path=path)
                self._close(path)
        self._look = self._reactor.callLater(LOOK, self._check)

    def _revoked(self, path: str) -> None:
        """The pod's process had no answer in time, and serves the pod alone."""
        self.log.info("the pod on {path} has left", event="pod-left", path=path)
        self._close(path)

    def _served(self, path: str) -> bool:
        """Whether the VM of a pod has been registered."""
        return _url(path) in self._registry.urls

    def _close(self, path: str) -> None:
        self._registry.urls.discard(_url(path))
        self.listeners.pop(path).stopListening()
        self._changed()

    def _changed(self) -> None:
        if self.whenChanged is not None:
            self.whenChanged()


def _url(path: str) -> str:
    return f"unix://{path}"
