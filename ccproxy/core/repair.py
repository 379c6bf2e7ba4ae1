"""
Repair of the core after an unexpected exception (promise P22).

Such an exception cuts a turn short. The turn may have been about to answer commands, and objects
may be between two states. Therefore every turn runs under L{turn} or L{run}. They log the
exception. When the outermost turn is over, they L{repair} the registry:

 - Each object finishes what it has begun. Its method C{repair} does nothing otherwise.
 - Each command that would get no answer gets an error response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar, cast

from ..errors import InternalError

if TYPE_CHECKING:
    from .commands import ControlCommand, Slot
    from .registry import Registry
    from .session import Session
    from .vm import VM

#: Passes over everything: an exception during one leaves something for the next.
MAX_PASSES = 3


class Breakable(Protocol):
    """A sink that can give up its connection."""

    @property
    def registry(self) -> Registry:
        """The root of the state."""

    def broken(self) -> None:
        """Close the connection: an exception has made its position unknown."""


S = TypeVar("S", bound=Breakable)
P = ParamSpec("P")
R = TypeVar("R")


def turn(step: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """
    Decorate a method of an L{IStreamSink <ccproxy.interfaces.IStreamSink>}: it is a turn. An
    exception costs only this sink its connection.
    """

    @wraps(step)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        registry = self.registry
        registry.depth += 1
        try:
            return step(self, *args, **kwargs)
        except Exception:
            registry.failed()
            _try(registry, self.broken)
            return cast(R, 0)  # nothing was used: there is no connection any more
        finally:
            # Not shared with run: this is on the path of every frame.
            registry.depth -= 1
            if registry.damaged and not registry.depth:
                repair(registry)

    return guarded


def run(registry: Registry, step: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call C{step} as a turn of the core."""
    registry.depth += 1
    try:
        step(*args, **kwargs)
    except Exception:
        registry.failed()
    finally:
        registry.depth -= 1
        if registry.damaged and not registry.depth:
            repair(registry)


def _try(registry: Registry, step: Callable[[], object]) -> None:
    try:
        step()
    except Exception:
        registry.failed()


def repair(registry: Registry) -> None:
    """Bring the state in order after a turn that an exception has cut short."""
    registry.depth += 1
    for _ in range(MAX_PASSES):
        registry.damaged = False
        for step in _steps(registry):
            _try(registry, step)
        if not registry.damaged:
            break
    registry.damaged = False
    registry.depth -= 1


def _steps(registry: Registry) -> Iterator[Callable[[], object]]:
    for client in list(registry.clients):
        yield client.repair
    vms = _vms(registry)
    sessions = _sessions(registry, vms)
    for vm in vms:
        yield vm.repair
    commands = {command for vm in vms for command in _commands(vm)}
    for session in sessions:
        yield partial(session.repair, commands)
    held = {each.slot for session in sessions for each in session.held}
    held.update(vm.slot for vm in vms if vm.slot is not None)
    held.update(command.slot for command in commands if command.slot is not None)
    for client in list(registry.clients):
        for slot in _lost(client.slots, held):
            yield partial(slot.fail, InternalError())
        yield client.repair
    yield registry.recount
    yield registry.flush


def _vms(registry: Registry) -> set[VM]:
    """Return all VMs, those included that only a client still refers to."""
    vms = registry.allVMs
    for client in registry.clients:
        vms.update(vm for vm in (client.vm, client.registering) if vm is not None)
        if client.session is not None:
            vms.add(client.session.vm)
    return vms


def _sessions(registry: Registry, vms: set[VM]) -> set[Session]:
    """Return all sessions of these VMs, those included that only a token or a client refers to."""
    sessions = registry.allSessions.union(*(vm.processes.sessions for vm in vms))
    return sessions.union(each.session for each in registry.clients if each.session is not None)


def _commands(vm: VM) -> Iterator[ControlCommand]:
    """Commands that will still be answered."""
    yield from vm.commands.unanswered
    yield from vm.starts.parked


def _lost(slots: list[Slot], held: set[Slot]) -> list[Slot]:
    return [slot for slot in slots if slot.reply is None and slot not in held]
