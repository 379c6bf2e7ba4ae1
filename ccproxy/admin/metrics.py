"""
The daemon's metrics, for Prometheus.

Nothing is kept here: the numbers are collected when somebody asks, from what the core counts
anyway.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from heapq import nlargest
from typing import Protocol, TypeVar

import attrs
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from twisted import __version__ as twistedVersion

from .. import __version__
from ..core.registry import Registry
from ..core.tally import BOUNDS, Durations
from ..core.vm import vmOf
from ..wire.codes import Command
from . import looking
from .calls import Reply
from .events import Events
from .health import Health

K = TypeVar("K")

#: How many sessions are told one by one of those that a crash has cost something.
MOST_SESSIONS = 100

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OUTCOMES = {True: "ok", False: "error"}


class LogCounts(Protocol):
    """
    A log that counts what is not in it.

    @ivar lost: how many entries no sink took.
    @ivar refused: how many were too many of their kind.
    """

    @property
    def lost(self) -> int: ...

    @property
    def refused(self) -> int: ...


@attrs.define(eq=False)
class DaemonCollector(Collector):
    """
    What is collected.

    @ivar registry: all that the daemon knows.
    @ivar health: whether it works.
    @ivar events: what has happened.
    @ivar orphans: how many VMs nobody looks after, or L{None} where nobody counts.
    @ivar log: the daemon's log, or L{None} where that is not its own.
    """

    registry: Registry
    health: Health
    events: Events
    orphans: Callable[[], int] | None = None
    log: LogCounts | None = None

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        yield from self._daemon()
        yield from self._things()
        yield from self._flow()
        yield from self._losses()
        yield from self._commands()
        yield _counters(
            "ccproxy_events", "Events of the log, by their name.", "event", self.events.counts
        )
        if self.log is not None:
            yield _counters(
                "ccproxy_log_entries_left_out",
                "Log entries that --log-rate has left out, or that a sink has not taken.",
                "reason",
                {"rate": self.log.refused, "sink": self.log.lost},
            )

    def _daemon(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "ccproxy_build_info", "What runs; always 1.", labels=["version", "python", "twisted"]
        )
        build.add_metric([__version__, platform.python_version(), twistedVersion], 1)
        yield build
        found = self.health.look()
        yield _gauge("ccproxy_healthy", "Whether /healthz says so.", found.healthy)
        yield _gauge(
            "ccproxy_loop_lag_seconds",
            "By how much the loop was late, at worst in the last ten seconds.",
            found.loopLag,
        )
        yield _gauge("ccproxy_draining", "Whether no new VMs are taken.", self.registry.draining)
        yield _gauge(
            "ccproxy_event_listeners", "Listeners to /v1/events.", len(self.events.listeners)
        )

    def _things(self) -> Iterator[Metric]:
        counts = looking.counts(self.registry)
        yield _gauges("ccproxy_vms", "VMs, by state.", "state", counts.vms)
        yield _gauges("ccproxy_sessions", "Sessions, by state.", "state", counts.sessions)
        yield _gauges("ccproxy_clients", "Client connections, by state.", "state", counts.clients)
        yield _gauge("ccproxy_shims", "Client connections that are shims.", counts.shims)
        yield _gauge(
            "ccproxy_pending_commands", "Commands that wait for something.", counts.commands
        )
        if self.orphans is not None:
            yield _gauge("ccproxy_orphaned_vms", "VMs without client and shim.", self.orphans())
        yield _counter(
            "ccproxy_connections", "Clients that have connected.", self.registry.clientCount
        )

    def _flow(self) -> Iterator[Metric]:
        registry = self.registry
        vms = looking.allVMs(registry)
        total = registry.context.tally.total(vms)
        yield _counters(
            "ccproxy_io_frames",
            "Messages on the VMs' I/O channels: out is output, in is stdin.",
            "direction",
            {"out": total.outFrames, "in": total.inFrames},
        )
        yield _counters(
            "ccproxy_io_bytes",
            "Bytes of those messages, headers included.",
            "direction",
            {"out": total.outBytes, "in": total.inBytes},
        )
        used = registry.context.budget.used
        yield _gauge("ccproxy_buffered_bytes", "Bytes kept for all sessions.", used)
        yield _gauge(
            "ccproxy_buffer_limit_bytes",
            "How many of them make every session's share smaller.",
            registry.context.limits.totalBuffer,
        )
        blocked = [vm.flow for vm in vms if vm.flow.blocker is not None]
        now = registry.context.clock.seconds()
        yield _gauge(
            "ccproxy_blocked_vms", "VMs whose output waits for a full session.", len(blocked)
        )
        yield _counter(
            "ccproxy_backpressure_seconds",
            "For how long the output of VMs has waited for full sessions.",
            registry.context.tally.blocked + sum(now - flow.since for flow in blocked),
        )
        yield _counter(
            "ccproxy_ignored_frames",
            "Frames of clients that were dropped because they may not send them.",
            registry.ignoredFrames,
        )

    def _losses(self) -> Iterator[Metric]:
        registry = self.registry
        output, stdin = registry.crashLoss
        yield _counters(
            "ccproxy_crash_lost_bytes",
            "What crashes of the daemon have cost all sessions: bytes that were in its memory.",
            "direction",
            {"out": output, "in": stdin},
        )
        each = CounterMetricFamily(
            "ccproxy_session_crash_lost_bytes",
            f"The same of each session that is still there, of those {MOST_SESSIONS} that have lost"
            " most.",
            labels=["vm", "serial", "session", "direction"],
        )
        if output or stdin:
            sessions = (
                session
                for vm in looking.allVMs(registry)
                for session in vm.processes.sessions
                if any(session.crashLoss)
            )
            for session in nlargest(MOST_SESSIONS, sessions, lambda found: sum(found.crashLoss)):
                labels = [session.containerId, str(vmOf(session).serial), session.name]
                for direction, lost in zip(("out", "in"), session.crashLoss, strict=True):
                    each.add_metric([*labels, direction], lost)
        yield each

    def _commands(self) -> Iterator[Metric]:
        tally = self.registry.context.tally
        answered: dict[tuple[str, bool], Durations] = {}
        for (opcode, good), durations in tally.answered.items():
            answered[_title(opcode), good] = durations
        yield _histogram(
            "ccproxy_command_duration_seconds",
            "From a client's command to its response.",
            answered,
        )
        yield _histogram(
            "ccproxy_agent_command_duration_seconds",
            "From a command's way to an agent to the agent's answer.",
            tally.acknowledged,
        )
        yield _counters(
            "ccproxy_command_errors",
            "Commands of clients that failed, by kind of error.",
            "kind",
            {error.__name__: count for error, count in tally.errors.items()},
        )


def _title(opcode: int) -> str:
    try:
        return Command(opcode).title
    except ValueError:
        return f"opcode {opcode}"


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=value)


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(name, help, value=value)


def _gauges(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, help, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _counters(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, help, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _histogram(name: str, help: str, found: Mapping[tuple[str, bool], Durations]) -> Metric:
    family = HistogramMetricFamily(name, help, labels=["command", "outcome"])
    for (command, good), durations in found.items():
        buckets, count = [], 0
        for bound, number in zip([*map(str, BOUNDS), "+Inf"], durations.classes, strict=True):
            count += number
            buckets.append((bound, count))
        family.add_metric([command, _OUTCOMES[good]], buckets, durations.total)
    return family


class Metrics:
    """
    The page that Prometheus reads.
    """

    def __init__(self, collector: Collector) -> None:
        """
        @param collector: what is on it beside the figures of the process.
        """
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)

    def page(self) -> Reply:
        """It, as it is now."""
        return Reply(generate_latest(self._registry), _CONTENT_TYPE)
