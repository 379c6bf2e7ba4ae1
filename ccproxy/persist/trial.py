"""
A restore without effect, which shows beforehand whether the real one would fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from twisted.internet.task import Clock
from twisted.logger import LogEvent, Logger

from ..core.context import Context
from ..core.registry import Registry
from ..core.resuming import TrialConnection, resume
from ..core.snapshot import Key, Snapshot
from ..core.vm import VM
from ..net.connecting import ChannelsForm, Connector
from .consoles import ConsoleForm, resumeConsoles


class _TrialConnector(Connector):
    """Connects nothing."""

    def connect(self, vm: VM) -> None:
        """See L{IConnector.connect}."""

    def _openConsole(self, vm: VM, sockets: object) -> None:
        pass


def tryRestore(
    connector: Connector,
    snapshots: Sequence[Snapshot],
    connected: Iterable[Key],
    channels: Sequence[ChannelsForm],
    consoles: Mapping[int, ConsoleForm],
    crashed: bool,
) -> None:
    """
    Restore snapshots into a registry that is thrown away.

    @param connector: that of the real registry, whose limits and time hold here too.
    @param connected: the connections of these snapshots that can be restored.
    @param channels: what the connector knew of the VMs.
    @param consoles: what the consoles of the VMs have said.
    @param crashed: the process that wrote the snapshots has died.
    @raise Exception: the real restore would fail.
    """
    real, clock = connector.registry, Clock()
    events: list[LogEvent] = []
    clock.rightNow = real.context.clock.seconds()
    trial = _TrialConnector(connector.poller)
    context = Context(
        clock,
        real.context.wallClock,
        real.context.limits,
        Logger(observer=events.append),  # type: ignore[arg-type]
        whenChanged=_sendNow,
    )
    registry = trial.registry = Registry(context, trial, agentDialect=real.agentDialect)
    resumed = resume(registry, snapshots, dict.fromkeys(connected, TrialConnection()))
    resumeConsoles(registry.vms.values(), consoles)
    trial.adopt(channels, {})
    if crashed:
        resumed.recover()
    resumed.begin()
    for failure in (event["log_failure"] for event in events if "log_failure" in event):
        raise failure.value


def _sendNow(changed: Iterable[object]) -> None:
    """Stand for a journal."""
    for thing in changed:
        if isinstance(thing, VM):
            thing.agent.sendNow()
