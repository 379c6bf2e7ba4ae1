"""
Tests for the plugin of C{twistd}, L{ccproxy.service.making} and L{ccproxy.service.running}.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

from twisted.application.service import Application, IServiceMaker, MultiService, Service
from twisted.internet.error import ReactorNotRunning
from twisted.logger import ILogObserver, Logger
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ...config.options import Options
from ...config.settings import Settings
from ...errors import CCProxyError
from ...log import sinks as logsinks
from ...log.daemonlog import DaemonLog
from ...service import running
from ...service.running import TwistdService, failingClearly, handleSignals


class FakeReactor:
    """As much of a reactor as signals need."""

    def __init__(self) -> None:
        self.stops = 0
        self.whenRunning: list[Any] = []
        self.fromThread: list[Any] = []

    def callWhenRunning(self, call: Any) -> None:
        """Keep a call."""
        self.whenRunning.append(call)

    def callFromThread(self, call: Any, *arguments: object) -> None:
        """Keep a call."""
        self.fromThread.append((call, arguments))

    def turn(self) -> None:
        """Make the calls that came from signals."""
        calls, self.fromThread = self.fromThread, []
        for call, arguments in calls:
            call(*arguments)

    def stop(self) -> None:
        """Stop, once."""
        self.stops += 1
        if self.stops > 1:
            raise ReactorNotRunning


def keepMask(case: SynchronousTestCase) -> None:
    """Restore the signals that this process holds back: the import of the service holds some."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    case.addCleanup(signal.pthread_sigmask, signal.SIG_SETMASK, mask)


class PluginTests(SynchronousTestCase):
    """
    What C{twistd} finds.
    """

    def test_maker(self) -> None:
        """There is one plugin, and it leads to our options and service."""
        keepMask(self)
        from ...service import making

        (maker,) = (maker for maker in getPlugins(IServiceMaker) if maker.tapname == "ccproxy")
        verifyObject(IServiceMaker, maker)
        self.assertIs(maker.options, Options)
        self.assertIs(maker.makeService, making.makeService)


class SignalTests(SynchronousTestCase):
    """
    Tests for L{handleSignals}.
    """

    def setUp(self) -> None:
        """Restore the handlers of this process afterwards, and its mask."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
        for number in numbers:
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.addCleanup(signal.pthread_sigmask, signal.SIG_UNBLOCK, numbers)
        self.reactor = FakeReactor()
        self.events: list[Any] = []
        observer: Any = self.events.append
        self.patch(running, "_log", Logger("test", observer=observer))
        self.reloads: list[bool] = []
        self.dumps: list[bool] = []
        self.insists: list[bool] = []
        handleSignals(
            self.reactor,
            lambda: self.reloads.append(True),
            lambda: self.dumps.append(True),
            lambda insist: bool(self.insists.append(insist)),  # type: ignore[func-returns-value]
        )

    def run_(self) -> None:
        """Let the reactor run, after it has put its own handler in place."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for call in self.reactor.whenRunning:
            call()

    def test_stop(self) -> None:
        """SIGTERM and SIGINT stop the reactor, on its next turn; more of them do no harm."""
        self.run_()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        self.assertEqual(self.reactor.stops, 0)
        self.reactor.turn()
        self.assertEqual(
            [(event["log_format"], event["signal"]) for event in self.events],
            [
                ("{signal}: stopping", "SIGTERM"),
                ("{signal}: stopping already", "SIGINT"),
                ("{signal}: stopping already", "SIGTERM"),
            ],
        )

    def test_hangUp(self) -> None:
        """SIGHUP makes it read its configuration again, on the next turn of the reactor."""
        self.run_()
        signal.raise_signal(signal.SIGHUP)
        self.assertEqual(self.reloads, [])
        self.reactor.turn()
        self.assertEqual(self.reactor.stops, 0)
        self.assertEqual(self.reloads, [True])

    def test_restart(self) -> None:
        """SIGUSR2 asks for a restart, and ends nothing where that cannot be."""
        self.run_()
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.raise_signal(number)
        self.reactor.turn()
        self.assertEqual(self.insists, [False, True])
        self.assertEqual(self.reactor.stops, 1)

    def test_user(self) -> None:
        """SIGUSR1 makes it log its state, on the next turn of the reactor."""
        self.run_()
        signal.raise_signal(signal.SIGUSR1)
        self.assertEqual(self.dumps, [])
        self.reactor.turn()
        self.assertEqual((self.reactor.stops, self.dumps), (0, [True]))

    def test_early(self) -> None:
        """A signal that comes before the reactor runs is handled when it does."""
        signal.raise_signal(signal.SIGTERM)
        self.reactor.turn()
        self.assertEqual(self.reactor.stops, 0)
        self.run_()
        self.reactor.turn()
        self.assertEqual(self.reactor.stops, 1)


class StartTests(SynchronousTestCase):
    """
    Tests for L{failingClearly} and L{TwistdService}.
    """

    def setUp(self) -> None:
        """Keep the log and the signals of this process as they are."""
        self.events: list[Any] = []
        observer: Any = self.events.append
        self.patch(running, "_log", Logger("test", observer=observer))
        self.patch(running, "handleSignals", lambda *arguments: None)
        self.patch(DaemonLog, "flushAtExit", lambda self: None)

    def test_failing(self) -> None:
        """A start that fails is a line in the log, and status 1."""
        for error in (CCProxyError("taken"), OSError(13, "denied"), ValueError("bug")):
            with self.assertRaises(SystemExit) as caught, failingClearly():
                raise error
            self.assertEqual(caught.exception.code, 1)
            self.assertTrue(self.events.pop()["log_format"].startswith("cannot start"))

    def test_failingInTheBackground(self) -> None:
        """In the background C{twistd} gets the exception as well."""
        self.patch(sys, "excepthook", sys.excepthook)
        with self.assertRaises(CCProxyError), failingClearly(foreground=False):
            raise CCProxyError("taken")
        self.assertEqual(len(self.events), 1)

    def service(self, **twistd: Any) -> tuple[Any, dict[str, Any]]:
        """An application with our service, and the options of C{twistd} afterwards."""
        application = Application("ccproxy")
        service = TwistdService(MultiService(), Settings(), twistd, FakeReactor(), int, int)
        service.setServiceParent(application)
        return application, twistd

    def test_log(self) -> None:
        """The application logs by our observer, unless C{twistd} was told of another one."""
        for options in (
            {"nodaemon": True},
            {"nodaemon": True, "logfile": "-"},
            {"logfile": "x"},
            {"syslog": True},
            {},
        ):
            application, _ = self.service(**options)
            self.assertIsInstance(application.getComponent(ILogObserver), DaemonLog)
        for options in ({"logger": "some.factory"}, {"logfile": "-"}):
            application, _ = self.service(**options)
            self.assertIs(application.getComponent(ILogObserver, None), None)

    def test_logfile(self) -> None:
        """The log goes where C{twistd} was told: C{--logfile}."""
        path = self.mktemp()
        application, _ = self.service(logfile=path)
        log = application.getComponent(ILogObserver)
        Logger("ccproxy", observer=log).info("hello")
        log.flush(0)
        with open(path) as file:
            self.assertIn("info  hello\n", file.read())

    def test_syslog(self) -> None:
        """C{--syslog} is our own sink for syslog, which shows no token."""
        path = self.mktemp()
        os.mkdir(path)
        self.patch(logsinks, "SYSLOG", os.path.relpath(os.path.join(path, "log")))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
            reader.bind(logsinks.SYSLOG)
            reader.settimeout(30)
            application, _ = self.service(syslog=True)
            log = application.getComponent(ILogObserver)
            Logger("ccproxy", observer=log).info("unknown token: {token}", token="T" * 43)
            log.flush(0)
            self.assertRegex(reader.recv(1000), rb"ccproxy\[\d+\]: unknown token: TTTTTT\.\.\.")

    def test_start(self) -> None:
        """The daemon is started, with and without an application around it."""
        for twistd in ({"nodaemon": True}, {"syslog": True}):
            daemon = Service()
            service = TwistdService(daemon, Settings(), twistd, FakeReactor(), int, int)
            service.setServiceParent(MultiService())
            service.privilegedStartService()
            service.startService()
            self.assertTrue(daemon.running)

    def test_makeService(self) -> None:
        """The options on the command line reach the daemon, started by nothing yet."""
        keepMask(self)
        from ...service import making

        options = Options()
        path = os.path.join(os.sep, "nonexistent", "proxy.sock")
        options.parseOptions(["--socket-path", path])
        service = making.makeService(options)
        (daemon,) = service
        self.assertEqual(daemon.registry.registry.url, f"unix://{path}")
        self.addCleanup(daemon.registry.poller.close)
