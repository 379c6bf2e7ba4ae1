"""
The state of the daemon and all that it waits for, written to the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger, LogLevel

from ..core.context import Context
from ..core.registry import Registry
from ..net.deadlines import Deadlines

#: Entries that are written at once, and the seconds until the next ones: the loop goes on
#: meanwhile, and a reader of the log keeps up.
BATCH = 50
PAUSE = 0.05


class StateDump:
    """
    Logs everything when it is called, one entry for each thing, whatever the level of the log is.

    It takes several turns of the loop, so what changes meanwhile is told as it was or as it is.
    """

    _log = Logger()

    def __init__(self, registry: Registry, reactor: Any, deadlines: Deadlines) -> None:
        """
        @param reactor: whose pending calls are logged too.
        @param deadlines: the same.
        """
        self._registry = registry
        self._reactor = reactor
        self._deadlines = deadlines
        self._dumping: Deferred[None] | None = None

    def __call__(self) -> None:
        """Begin, unless it is under way."""
        if self._dumping is None:
            self._dumping = Deferred.fromCoroutine(self._dump())
            self._dumping.addErrback(
                lambda failure: self._log.failure(
                    "the state cannot be logged", failure, event="dump-failed"
                )
            )
            self._dumping.addBoth(self._done)

    def _done(self, result: None) -> None:
        self._dumping = None

    async def _dump(self) -> None:
        count = 0
        for what, fields in _state(self._registry, self._reactor, self._deadlines):
            self._emit(what, fields)
            count += 1
            if count % BATCH == 0:
                await deferLater(self._reactor, PAUSE)
        self._emit("end", {"entries": count})

    def _emit(self, what: str, fields: Mapping[str, Any]) -> None:
        self._log.emit(
            LogLevel.info, f"state: {what}", event=f"dump-{what}", log_always=True, **fields
        )


def _state(
    registry: Registry, reactor: Any, deadlines: Deadlines
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What there is: what it is, and its fields."""
    from ..admin import looking

    yield "counts", _fields(looking.counts(registry))
    yield "limits", _fields(registry.context.limits)
    # All at once: of a wait that is over nothing can be told.
    waits = [wait for wait in reactor.getDelayedCalls() if not deadlines.isTimer(wait)]
    waits = sorted([*waits, *deadlines.getDelayedCalls()], key=lambda wait: wait.getTime())
    for fields in [_waitFields(wait, reactor.seconds()) for wait in waits]:
        yield "wait", fields
    for command in looking.commands(registry):
        yield "command", _fields(command)
    for client in looking.clients(registry):
        yield "client", _fields(client)
    for vm in looking.allVMs(registry):
        yield "vm", _fields(looking.vmView(vm))
        for session in sorted(vm.processes.sessions, key=lambda session: session.stdio):
            yield "session", _fields(looking.sessionView(session))


def _fields(view: object) -> dict[str, Any]:
    """What is in a view and says something, by the names that the log has for it."""
    found = msgspec.to_builtins(view)
    if "containerId" in found:
        found = {"vm": found.pop("containerId"), **found}
    if "peer" in found:
        found = {"client": f"{found.pop('number')} {found.pop('peer')}", **found}
    return {name: _shown(value) for name, value in found.items() if value != ""}


def _shown(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return " ".join(f"{name}={_shown(part)}" for name, part in value.items() if part) or None
    return value


def _waitFields(wait: Any, now: float) -> dict[str, Any]:
    """
    What will be called, when, and on whose behalf.

    @param wait: a C{DelayedCall}.
    """
    call: Callable[..., object] = wait.func
    if getattr(call, "__func__", None) is Context.timed:
        call = wait.args[0]
    elif isinstance(call, LoopingCall):
        call = call.f
    owner = getattr(call, "__self__", None)
    for name in ("_vm", "_session"):
        owner = getattr(owner, name, owner)
    return {
        "seconds": f"{wait.getTime() - now:.3f}",
        "call": getattr(call, "__qualname__", None) or type(call).__name__,
        **(getattr(owner, "fields", None) or {}),
    }
