"""
Tests for L{ccproxy.config.options} and L{ccproxy.config.settings}.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

import ccproxy

from ...config.options import Options
from ...config.settings import BadSetting, Settings, optionName
from ...core.limits import Limits
from ...wire.codes import Dialect


def parsed(*arguments: str) -> Settings:
    """The settings that a command line makes."""
    options = Options()
    options.parseOptions(list(arguments))
    return options.settings


class SettingsTests(SynchronousTestCase):
    """
    Tests for L{Settings}.
    """

    def test_url(self) -> None:
        """The address that clients are told holds an absolute path, also for a relative one."""
        self.assertEqual(Settings(socketPath="/run/p.sock").url, "unix:///run/p.sock")
        self.assertTrue(Settings(socketPath="p.sock").url.startswith("unix:///"))

    def test_longestPath(self) -> None:
        """A path of 107 bytes is taken; one of 108 is refused, counted in bytes."""
        Settings(socketPath="/" + "x" * 106)
        for path in ("/" + "x" * 107, "/" + "é" * 54):
            with self.assertRaisesRegex(BadSetting, "socket-path: .* at most 107"):
                Settings(socketPath=path)

    def test_oneSocketForBoth(self) -> None:
        """The admin socket is another one than that of clients."""
        with self.assertRaisesRegex(BadSetting, "admin-socket: /run/p.sock is the client socket"):
            Settings(socketPath="/run/p.sock", adminSocket="/run/p.sock")
        Settings(socketPath="/run/p.sock", adminSocket="/run/p.sock", noAdmin=True)

    def test_everyBoundOfLimits(self) -> None:
        """Every limit is refused just below its least value, and taken at it."""
        for field in attrs.fields(Limits):
            least: Any = field.metadata["kind"](field.metadata["least"])
            below: Any = least - 1 if isinstance(least, int) else least - 0.001
            limits: dict[str, Any] = {field.name: least}
            Settings(limits=Limits(**limits))
            above = field.metadata["most"] + 1
            for limits[field.name] in (below, above, 10**400, float("nan"), float("inf")):
                with self.assertRaisesRegex(BadSetting, f"^{optionName(field.name)}: "):
                    Settings(limits=Limits(**limits))

    def test_wholeNumbers(self) -> None:
        """A limit that counts is a whole number, and no boolean."""
        for bad in (1.5, True):
            with self.assertRaisesRegex(BadSetting, "max-vms: .* no whole number"):
                Settings(limits=Limits(maxVMs=bad))  # type: ignore[arg-type]

    def test_undecidedDialect(self) -> None:
        """What the proxy knows of an agent at first is nothing that can be configured."""
        for name in ("agentDialect", "embeddedDialect"):
            setting: dict[str, Any] = {name: Dialect.HYPERSTART}
            with self.assertRaisesRegex(BadSetting, "cc, hyperstart0, hyperstart1"):
                Settings(**setting)

    def test_levels(self) -> None:
        """A log level has one name inside, whatever it was called."""
        self.assertEqual(Settings(logLevel="WARNING").logLevel, "warn")
        self.assertEqual(Settings(logLevel="panic").logLevel, "error")

    def test_differences(self) -> None:
        """What differs from the defaults is told by the names of the options."""
        self.assertEqual(Settings().differences(), {})
        settings = Settings(
            socketPath="/run/p.sock",
            socketMode=0o600,
            embeddedVMs=("a", "b"),
            agentDialect=Dialect.CC,
            pprof=1,  # type: ignore[arg-type]
            limits=Limits(maxVMs=3, readyTimeout=0.5, stalledDrop=4.0),
        )
        self.assertEqual(
            settings.differences(),
            {
                "socket-path": "/run/p.sock",
                "socket-mode": "0600",
                "embedded-vm": "a,b",
                "agent-dialect": "cc",
                "pprof": "true",
                "max-vms": "3",
                "ready-timeout": "0.5",
                "stalled-shim": "drop-after=4",
            },
        )


class OptionsTests(SynchronousTestCase):
    """
    Tests for L{Options}.
    """

    def test_defaults(self) -> None:
        """Without an option, everything is as L{Settings} has it."""
        self.assertEqual(parsed(), Settings())

    def test_everySetting(self) -> None:
        """Every option that is not a limit sets its field."""
        settings = parsed(
            "--socket-path=/run/p.sock",
            "--socket-mode=0600",
            "--socket-group=kvm",
            "--log-level=DEBUG",
            "--log-format=json",
            "--log-to=syslog,journal",
            "--log-rate=5",
            "--embedded-vm=a",
            "--embedded-vm=b",
            "--embedded-dialect=hyperstart1",
            "--vm-socket-dir=/run/a",
            "--vm-socket-dir=/run/b",
            "--agent-dialect=hyperstart0",
            "--ksm=off",
            "--admin-socket=/run/a.sock",
            "--no-admin",
            "--metrics-address=[::1]:9091",
            "--max-loop-lag=0.5",
            "--orphan=report",
            "--orphan-after=60",
            "--pprof",
            "--keep-descriptors",
            "--join",
            "--pod",
        )
        self.assertEqual(
            settings,
            Settings(
                socketPath="/run/p.sock",
                socketMode=0o600,
                socketGroup="kvm",
                logLevel="debug",
                logFormat="json",
                logTo=("syslog", "journal"),
                logRate=5,
                embeddedVMs=("a", "b"),
                embeddedDialect=Dialect.HYPERSTART1,
                vmSocketDirs=("/run/a", "/run/b"),
                agentDialect=Dialect.HYPERSTART0,
                ksm="off",
                adminSocket="/run/a.sock",
                noAdmin=True,
                metricsAddress="[::1]:9091",
                maxLoopLag=0.5,
                orphan="report",
                orphanAfter=60,
                pprof=True,
                keepDescriptors=True,
                join=True,
                pod=True,
            ),
        )
        unset = [
            field.name
            for field in attrs.fields(Settings)
            if field.eq
            and field.name != "limits"
            and getattr(settings, field.name) == getattr(Settings(), field.name)
        ]
        self.assertEqual(unset, [])

    def test_everyLimit(self) -> None:
        """Every limit but one has an option of its own, which sets it and nothing else."""
        for field in attrs.fields(Limits):
            if field.name != "stalledDrop":
                default: Any = field.default
                value = default + 1
                settings = parsed(f"--{optionName(field.name)}={value}")
                self.assertEqual(settings.limits, Limits(**{field.name: value}))

    def test_stalledShim(self) -> None:
        """C{--stalled-shim} says whether and when output is dropped."""
        self.assertEqual(parsed("--stalled-shim=keep").limits.stalledDrop, 0.0)
        self.assertEqual(parsed("--stalled-shim=drop-after=2.5").limits.stalledDrop, 2.5)

    def test_bytes(self) -> None:
        """Numbers of bytes can have a unit."""
        for text, value in (("65536", 65536), ("64KiB", 65536), ("2 mib", 2 << 20)):
            self.assertEqual(parsed("--session-buffer", text).limits.sessionBuffer, value)

    def test_errors(self) -> None:
        """An error names the option and the bad value."""
        for option, value in (
            ("socket-path", ""),
            ("socket-path", "/" + "x" * 107),
            ("socket-mode", "999"),
            ("socket-mode", "rw"),
            ("log-level", "loud"),
            ("log-format", "xml"),
            ("embedded-vm", ""),
            ("embedded-dialect", "hyperstart"),
            ("agent-dialect", "klingon"),
            ("vm-socket-dir", "relative"),
            ("stalled-shim", "drop"),
            ("stalled-shim", "drop-after="),
            ("stalled-shim", "drop-after=0"),
            ("stalled-shim", "drop-after=inf"),
            ("max-vms", "0"),
            ("max-vms", "-1"),
            ("max-vms", "1KiB"),
            ("session-buffer", "1"),
            ("session-buffer", "1kb"),
            ("ready-timeout", "nan"),
            ("ready-timeout", "1e999"),
            ("ready-timeout", "soon"),
        ):
            error = self.assertRaises(UsageError, parsed, f"--{option}={value}")
            self.assertTrue(str(error).startswith(f"--{option}: "), str(error))
            self.assertIn(value.removeprefix("drop-after="), str(error))

    def test_notUTF8(self) -> None:
        """Text for clients must be UTF-8; an error shows the bytes that are not."""
        for option in ("socket-path", "admin-socket", "embedded-vm"):
            with self.assertRaisesRegex(UsageError, rf"^--{option}: .*caf\\udce9' is not UTF-8"):
                parsed(f"--{option}=/caf\udce9")

    def test_sameNameTwice(self) -> None:
        """Two embedded VMs of one name are refused."""
        with self.assertRaisesRegex(UsageError, "--embedded-vm: 'a' is given twice"):
            parsed("--embedded-vm=a", "--embedded-vm=a")

    def test_arguments(self) -> None:
        """There is nothing to say but options."""
        with self.assertRaisesRegex(UsageError, "'something' is no option"):
            parsed("something")

    @given(st.sampled_from(sorted(Options().docs)), st.text())
    def test_anyValue(self, option: str, value: str) -> None:
        """Any value of any option makes settings or a L{UsageError}."""
        with contextlib.suppress(UsageError, SystemExit):
            parsed(f"--{option}={value}")

    def test_help(self) -> None:
        """C{--help} explains every option, within 80 columns."""
        text = Options().getUsage(width=80)
        for option in Options().longOpt:
            self.assertIn(f"--{option}", text)
        self.assertEqual([line for line in text.splitlines() if len(line) > 80], [])
        self.assertNotIn("   and\n", text)
        self.assertIn("[default: 256MiB]", text)

    def test_light(self) -> None:
        """The module can be imported without the reactor and what the daemon is made of."""
        program = (
            "import sys, ccproxy.service.making; "
            "print(*(m for m in sys.modules if m.startswith(('twisted.internet', 'ccproxy'))))"
        )
        output = subprocess.run(
            [sys.executable, "-c", program],
            cwd=os.path.dirname(os.path.dirname(ccproxy.__file__)),
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        self.assertNotIn("twisted.internet", output)
        self.assertNotIn("ccproxy.service.proxy", output)
        self.assertNotIn("ccproxy.core.registry", output)
