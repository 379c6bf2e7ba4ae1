"""
Tests for L{ccproxy.config.file}, and for how command lines use it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import socket
import tempfile
from unittest import skipUnless

import attrs
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from ...config import file as config
from ...config.file import BadConfig
from ...config.options import Options
from ...config.settings import Settings, optionName
from ...core.limits import Limits
from ...ctl import checkconfig
from ...service.ccproxy_command import settingsFrom
from ...wire.codes import Dialect


class ConfigCase(SynchronousTestCase):
    """
    A configuration file.
    """

    def setUp(self) -> None:
        """A path, and none where one is read without being asked for."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.path = os.path.join(folder, "ccproxy.toml")
        self.patch(config, "DEFAULT_FILE", os.path.join(folder, "default.toml"))

    def write(self, text: str) -> None:
        """Write the file."""
        with open(self.path, "w") as file:
            file.write(text)

    def parsed(self, *arguments: str) -> Settings:
        """The settings of C{twistd ccproxy}."""
        options = Options()
        options.parseOptions(["--config", self.path, *arguments])
        return options.settings

    def read(self, text: str) -> Settings:
        """The settings that a file makes."""
        self.write(text)
        return self.parsed()

    def problem(self, text: str) -> str:
        """What is said of a file that cannot be used."""
        error = str(self.assertRaises(SystemExit, self.read, text))
        self.assertTrue(error.startswith(f"{self.path}: "), error)
        return error.removeprefix(f"{self.path}: ")


class FileTests(ConfigCase):
    """
    What can be in the file.
    """

    def test_empty(self) -> None:
        """An empty file says nothing."""
        self.assertEqual(self.read("# nothing\n"), Settings())

    def test_keys(self) -> None:
        """Keys are options."""
        settings = self.read(
            """
            socket-path = "/run/p.sock"
            socket-mode = "0600"
            socket-group = 0
            log-level = "warning"
            pod = true
            embedded-vm = ["a", "b"]
            agent-dialect = "hyperstart1"
            max-vms = 3
            ready-timeout = 2.5
            shim-timeout = 1e1
            session-buffer = "64KiB"
            client-buffer = 65536
            stalled-shim = "drop-after=2"
            """
        )
        self.assertEqual(
            settings,
            Settings(
                socketPath="/run/p.sock",
                socketMode=0o600,
                socketGroup="0",
                logLevel="warn",
                pod=True,
                embeddedVMs=("a", "b"),
                agentDialect=Dialect.HYPERSTART1,
                limits=Limits(
                    maxVMs=3,
                    readyTimeout=2.5,
                    shimTimeout=10.0,
                    sessionBuffer=65536,
                    clientBuffer=65536,
                    stalledDrop=2.0,
                ),
            ),
        )
        self.assertFalse(self.read("pod = false").pod)

    def test_everyLimit(self) -> None:
        """Every limit is a key."""
        for field in attrs.fields(Limits):
            if field.name != "stalledDrop":
                settings = self.read(f"{optionName(field.name)} = {field.metadata['least'] + 1}")
                expected = field.metadata["kind"](field.metadata["least"] + 1)
                self.assertEqual(getattr(settings.limits, field.name), expected)

    def test_optionsWin(self) -> None:
        """An option wins over the file, also with the value that is the default."""
        self.write('log-level = "debug"\nmax-vms = 3\nembedded-vm = ["a"]')
        settings = self.parsed("--log-level=info", "--embedded-vm=b", "--max-vms=2048")
        self.assertEqual(settings, Settings(embeddedVMs=("b",)))
        self.assertEqual(settings.overridden, ("log-level", "max-vms", "embedded-vm"))
        self.assertEqual(self.parsed("--log-level=debug", "--pprof").overridden, ())
        self.assertRaises(UsageError, self.parsed, "--log-level=loud")

    def test_errors(self) -> None:
        """What is wrong is said with the key and the value."""
        for text, expected in (
            ("max-vms = 0", "max-vms: 0 is less than 1, the least that works"),
            ('max-vms = "many"', "max-vms: 'many' is no whole number"),
            ("max-vms = 1.5", "max-vms: '1.5' is no whole number"),
            ("max-vms = true", "max-vms: true is not what it takes, a text or a number"),
            ("max-vms = [1]", "max-vms: [1] is not what it takes, a text or a number"),
            ("ready-timeout = inf", "ready-timeout: 'inf' is no number of seconds"),
            ("pod = 1", "pod: 1 is not what it takes, true or false"),
            ('embedded-vm = "a"', "embedded-vm: 'a' is not what it takes, a list of texts"),
            ('embedded-vm = ["a", "a"]', "embedded-vm: 'a' is given twice"),
            ("vm-socket-dir = [1]", "vm-socket-dir: [1] is not what it takes"),
            ("socket-mode = 0o660", "socket-mode: 432 is a number; write the mode in quotes"),
            ('log-level = "loud"', "log-level: unknown log level 'loud'"),
            ("[limits]\nmax-vms = 3", "unknown key 'limits'"),
            ("log-level.x = 3", "log-level: a table is not what it takes"),
            ("max-vm = 3", "unknown key 'max-vm'; did you mean max-vms?"),
            ("Max_VMs = 3", "unknown key 'Max_VMs'; did you mean max-vms?"),
            ('config = "x"', "unknown key 'config'"),
            ('version = "x"', "unknown key 'version'"),
            ("max-vms = ", "is no TOML: "),
        ):
            self.assertIn(expected, self.problem(text))

    def test_unreadable(self) -> None:
        """A file that was named must be there, and be text."""
        error = self.assertRaises(SystemExit, self.parsed)
        self.assertEqual(str(error), f"{self.path}: cannot be read: No such file or directory")
        with open(self.path, "wb") as file:
            file.write(b"\xff")
        self.assertIn("is no TOML: ", str(self.assertRaises(SystemExit, self.parsed)))
        self.assertRaises(SystemExit, Options().parseOptions, ["--config=a\0b"])

    @skipUnless("CCPROXY_SOURCE" in os.environ, "the sources are not here")
    def test_example(self) -> None:
        """The file that is installed says nothing, and what it suggests can be said."""
        with open(os.path.join(os.environ["CCPROXY_SOURCE"], "contrib/ccproxy.toml")) as file:
            text = file.read()
        self.assertEqual(self.read(text), Settings())
        suggested = re.findall("^#(.* = .*)", text, re.MULTILINE)
        settings = self.read("\n".join(suggested))
        self.assertGreater(len(suggested), 5)
        # They are the defaults, so that removing a # alone changes nothing.
        self.assertEqual(settings, Settings(vmSocketDirs=["/run/virtcontainers"]))

    def test_default(self) -> None:
        """Where no file is named, there may be one at the usual place."""
        options = Options()
        options.parseOptions([])
        self.assertEqual(options.settings, Settings())
        self.path = config.DEFAULT_FILE
        self.write("max-vms = 3")
        self.assertEqual(options.read().limits.maxVMs, 3)


class FlagTests(ConfigCase):
    """
    C{cc-proxy} with a file.
    """

    def settings(self, **given: object) -> Settings:
        """The settings that flags make together with the file."""
        return settingsFrom({"config": self.path, **given}, {})

    def test_layers(self) -> None:
        """Flags win over the file, the file over what the historic command line has by default."""
        self.write('log-level = "error"\nksm = "off"\nsocket-path = "/run/p.sock"\nmax-vms = 3')
        settings = self.settings()
        self.assertEqual((settings.logLevel, settings.ksm), ("error", "off"))
        self.assertEqual(settings.socketPath, "/run/p.sock")
        self.assertEqual(settings.limits.maxVMs, 3)
        settings = self.settings(log="warn", ksm="auto", **{"socket-path": "/run/q.sock"})
        self.assertEqual((settings.logLevel, settings.ksm), ("warn", "auto"))
        self.assertEqual(settings.socketPath, "/run/q.sock")
        self.write("")
        self.assertEqual(self.settings().logLevel, "warn")

    def test_pod(self) -> None:
        """
        What the file says of the host's one daemon is not for that of a pod, which would get in its
        way; the rest is.
        """
        self.write(
            """
            ksm = "auto"
            socket-path = "/run/p.sock"
            admin-socket = "/run/a.sock"
            metrics-address = "127.0.0.1:9090"
            embedded-vm = ["a"]
            keep-descriptors = true
            max-frame = 8192
            """
        )
        settings = self.settings(uri="/run/q.sock")
        expected = Settings(
            socketPath="/run/q.sock",
            pod=True,
            limits=Limits(maxFrame=8192),
            logLevel="warn",
            logFormat="logfmt",
            logTo="stderr,syslog",
        )
        self.assertEqual(settings, expected)
        self.assertEqual(
            self.parsed("--pod", "--socket-path=/run/q.sock"),
            attrs.evolve(expected, logLevel="info", logFormat="text", logTo="stderr"),
        )
        self.assertEqual(self.settings().metricsAddress, "127.0.0.1:9090")
        self.assertEqual(self.settings(uri="/x", **{"admin-socket": "/y"}).adminSocket, "/y")

    def test_environment(self) -> None:
        """The level in the environment wins over both."""
        self.write('log-level = "error"')
        settings = settingsFrom(
            {"config": self.path, "log": "info"}, {"CC_PROXY_LOG_LEVEL": "debug"}
        )
        self.assertEqual((settings.logLevel, settings.overridden), ("debug", ("log-level",)))

    def test_error(self) -> None:
        """What is wrong with the file is said as everywhere."""
        self.write("max-vms = 0")
        error = self.assertRaises(BadConfig, self.settings)
        self.assertEqual(error.path, self.path)
        self.assertTrue(str(error).startswith(f"{self.path}: max-vms: 0 is less"), error)


class CheckTests(ConfigCase):
    """
    C{ccproxyctl check-config}.
    """

    def check(self, *arguments: str) -> tuple[int, str, str]:
        """The exit status, stdout and stderr of the command."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = checkconfig.main(arguments)
        return status, out.getvalue(), err.getvalue()

    def test_good(self) -> None:
        """Of a good file it tells what it sets."""
        self.write('log-level = "warning"\nsocket-mode = "0600"\nmax-vms = 3\nmax-tokens = 4096')
        text = f"{self.path}: good\n  socket-mode = 0600\n  log-level = warn\n  max-vms = 3\n"
        self.assertEqual(self.check(self.path), (0, text, ""))
        self.assertEqual(self.check(self.path, "--quiet"), (0, "", ""))

    def test_bad(self) -> None:
        """Of a bad one it tells what is bad."""
        self.write("max-vms = 0")
        problem = f"{self.path}: max-vms: 0 is less than 1, the least that works"
        self.assertEqual(self.check(self.path), (1, "", f"ccproxyctl check-config: {problem}\n"))
        self.assertEqual(self.check("/nowhere")[0], 1)

    def test_machine(self) -> None:
        """So is what this machine does not have: a group, an address."""
        for text, problem in (
            ("socket-group = 99999999999", "socket-group: there is no group '99999999999'"),
            ('socket-group = "no such"', "socket-group: there is no group 'no such'"),
            ('metrics-address = "192.0.2.1:1"', "metrics-address: '192.0.2.1' is no address of"),
            ('metrics-address = "[2001:db8::1]:1"', "metrics-address: '2001:db8::1' is no address"),
            (f'metrics-address = "{"x" * 70}:1"', "metrics-address: 'xxx"),
            ('admin-socket = "/a"\nsocket-path = "/a"', "admin-socket: /a is the client socket"),
        ):
            self.write(text)
            status, out, err = self.check(self.path)
            self.assertEqual((status, out), (1, ""), text)
            self.assertTrue(err.startswith(f"ccproxyctl check-config: {self.path}: {problem}"), err)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            good = f'socket-group = 0\nmetrics-address = "127.0.0.1:{taken.getsockname()[1]}"'
            for text in (good, 'metrics-address = ":1"', 'metrics-address = "localhost:1"'):
                self.write(text)
                self.assertEqual(self.check(self.path, "-q"), (0, "", ""))

    def test_default(self) -> None:
        """By default it is about the file that the daemon would read, which need not be there."""
        status, out, _ = self.check()
        self.assertEqual((status, out.split()[0]), (0, config.DEFAULT_FILE))
        self.path = config.DEFAULT_FILE
        self.write("max-vms = 0")
        self.assertEqual(self.check()[0], 1)
