"""
Tests of L{ccproxy.service.systemd}, L{ccproxy.service.reload} and of limits that change.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from typing import Any

import attrs
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from ...config.settings import Settings
from ...core.limits import Limits
from ...errors import CCProxyError
from ...service.proxy import ProxyService
from ...service.reload import Reload
from ...service.systemd import SystemdService


class ManagedCase(SynchronousTestCase):
    """
    A daemon that is started by a service manager.
    """

    environment: dict[str, str] = {}

    def setUp(self) -> None:
        """The manager's socket, and a daemon that has not been started."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        path = os.path.join(folder, "notify")
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.manager.bind(path)
        self.manager.setblocking(False)
        self.patch(os, "environ", {"NOTIFY_SOCKET": path, **self.environment})
        self.reactor = MemoryReactorClock()
        self.settings = Settings(socketPath=os.path.join(folder, "proxy.sock"), noAdmin=True)
        self.proxy = ProxyService(self.settings, self.reactor)
        self.addCleanup(self.proxy.registry.poller.close)

    @property
    def systemd(self) -> SystemdService:
        """What tells the manager."""
        return self.proxy.systemd

    def told(self) -> list[dict[str, str]]:
        """What the manager was told since it was asked last."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                lines = self.manager.recv(4096).decode().splitlines()
                found.append(dict(line.split("=", 1) for line in lines))
        return found


class LifeTests(ManagedCase):
    """
    Tests of L{SystemdService}.
    """

    environment = {"WATCHDOG_USEC": "3000000"}

    def test_readyWhenRunning(self) -> None:
        """It is ready not before the loop turns."""
        self.systemd.startService()
        self.assertEqual(self.told(), [])
        self.reactor.run()
        ready = self.told()[0]
        self.assertEqual(ready["READY"], "1")
        self.assertEqual(ready["STATUS"], f"0 VMs, 0 clients on {self.settings.url}")

    def test_watchdog(self) -> None:
        """There are several signs of life in the time of the watchdog, until the end."""
        self.systemd.startService()
        self.reactor.run()
        self.told()
        self.reactor.pump([0.5] * 6)
        self.assertEqual([told["WATCHDOG"] for told in self.told()], ["1"] * 3)
        self.systemd.stopService()
        self.reactor.pump([0.5] * 6)
        self.assertEqual(self.told(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stoppedBeforeItRan(self) -> None:
        """A daemon that fails to start never was ready."""
        self.systemd.startService()
        self.systemd.stopService()
        self.reactor.run()
        self.assertEqual(self.told(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """The manager hears of the end before the daemon waits for what is under way."""
        self.systemd.startService()
        self.reactor.run()
        self.told()
        stopping = self.proxy.stopService()
        self.assertEqual(self.told()[0]["STOPPING"], "1")
        self.successResultOf(stopping)


class ReloadTests(ManagedCase):
    """
    Tests of L{Reload}.
    """

    def setUp(self) -> None:
        """A daemon, its log, and the configuration that it will find."""
        super().setUp()
        self.events: list[Any] = []
        observer: Any = self.events.append
        self.patch(Reload, "log", Logger("test", observer=observer))
        self.log = Log()
        self.proxy.daemonLog = self.log  # type: ignore[assignment]
        self.found: Settings | CCProxyError = self.settings
        self.reload = Reload(self.proxy, self.settings, self.read)

    def read(self) -> Settings:
        """Read the configuration."""
        if isinstance(self.found, CCProxyError):
            raise self.found
        return self.found

    def reloaded(self, **changes: Any) -> list[dict[str, str]]:
        """Reload with another configuration; what the manager was told."""
        self.found = attrs.evolve(self.settings, **changes)
        self.reload()
        return self.told()

    def logged(self) -> list[tuple[str, str | None]]:
        """The events that were logged since they were asked for last, with what they name."""
        events, self.events[:] = list(self.events), []
        return [
            (event["event"], event.get("changed") or event.get("waiting") or event.get("problem"))
            for event in events
        ]

    def test_changes(self) -> None:
        """The log's level and rate, and limits, are in force at once, which is said once."""
        changes = {"limits": Limits(maxVMs=3), "logLevel": "debug", "logRate": 7}
        reloading, ready = self.reloaded(**changes)
        self.assertEqual((reloading["RELOADING"], ready["READY"]), ("1", "1"))
        self.assertEqual(self.proxy.registry.registry.context.limits.maxVMs, 3)
        self.assertEqual((self.log.level, self.log.rate), ("debug", 7))
        self.assertEqual(self.logged(), [("reloaded", "log-level=debug log-rate=7 max-vms=3")])
        self.reloaded(**changes)
        self.assertEqual(self.logged(), [("reloaded", None)])
        self.reloaded()
        changed = "log-level=info log-rate=1000 max-vms=2048"
        self.assertEqual(self.logged(), [("reloaded", changed)])

    def test_overridden(self) -> None:
        """Keys of the file over which something else wins are named."""
        self.reloaded(overridden=("log-level", "max-vms"))
        self.assertEqual([event.get("overridden") for event in self.events], ["log-level max-vms"])
        self.events.clear()
        self.reloaded()
        self.assertEqual([event.get("overridden") for event in self.events], [None])

    def test_needsRestart(self) -> None:
        """Other settings do not change, and it is said of them each time."""
        for _ in range(2):
            self.reloaded(socketMode=0o600, vmSocketDirs=["/run"], limits=Limits(maxVMs=3))
            self.assertEqual(self.logged()[1], ("restart-needed", "socket-mode, vm-socket-dir"))
        self.assertEqual(self.proxy.registry.registry.context.limits.maxVMs, 3)

    def test_bad(self) -> None:
        """A configuration that cannot be used changes nothing, and the manager hears why."""
        self.reloaded(limits=Limits(maxVMs=3))
        self.logged()
        self.found = CCProxyError("max-vms: no")
        self.reload()
        self.assertEqual(self.told()[-1], {"READY": "1", "STATUS": "reload failed: max-vms: no"})
        self.assertEqual(self.logged(), [("reload-failed", "max-vms: no")])
        self.assertEqual(self.proxy.registry.registry.context.limits.maxVMs, 3)

    def test_otherLog(self) -> None:
        """A log that is not ours keeps its level."""
        self.proxy.daemonLog = None
        self.reloaded(logLevel="debug")
        self.assertEqual(self.logged(), [("reloaded", "log-level=debug")])


class Log:
    """
    As much of a log as can change.
    """

    level = "info"
    rate = 1000
