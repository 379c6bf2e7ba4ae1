"""
Tests for L{ccproxy.config.goflags} and L{ccproxy.service.ccproxy_command}.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ... import __version__
from ...config.goflags import Flag, FlagError, HelpWanted, boolFlag, parseFlags, usage
from ...config.settings import BadSetting, Settings
from ...net.address import DEFAULT_SOCKET
from ...service import ccproxy_command
from ...service.ccproxy_command import FLAGS, main, settingsFrom

SOME = (Flag("name", "a name", default="nobody"), boolFlag("loud", "be loud"))


class ParsingTests(SynchronousTestCase):
    """
    Tests for L{parseFlags}.
    """

    def assertParsed(self, *arguments: str, name: str = "nobody", loud: bool = False) -> list[str]:
        """Check what a command line gives, and return what is behind the flags."""
        values, rest = parseFlags(SOME, arguments)
        self.assertEqual(values, {"name": name, "loud": loud})
        return rest

    def test_defaults(self) -> None:
        """What is not given has its default."""
        self.assertParsed()

    def test_spellings(self) -> None:
        """One dash or two, the value behind an equals sign or as the next argument."""
        for spelling in (["-name", "x"], ["--name", "x"], ["-name=x"], ["--name=x"]):
            self.assertParsed(*spelling, name="x")
        self.assertParsed("-name=a=b", name="a=b")
        self.assertParsed("-name", "-loud", name="-loud")
        self.assertParsed("-name=", name="")
        self.assertParsed("-name=a", "-name=b", name="b")

    def test_boolean(self) -> None:
        """A boolean flag takes a value behind an equals sign only."""
        self.assertParsed("-loud", loud=True)
        for text in ("1", "t", "T", "TRUE", "true", "True"):
            self.assertParsed(f"-loud={text}", loud=True)
        for text in ("0", "f", "F", "FALSE", "false", "False"):
            self.assertParsed("-loud", f"-loud={text}", loud=False)
        self.assertEqual(self.assertParsed("-loud", "false", loud=True), ["false"])

    def test_end(self) -> None:
        """The flags end at two dashes, which are dropped, at a dash, and at another argument."""
        self.assertEqual(self.assertParsed("--", "-loud"), ["-loud"])
        self.assertEqual(self.assertParsed("-", "-loud"), ["-", "-loud"])
        self.assertEqual(self.assertParsed("word", "-loud"), ["word", "-loud"])
        self.assertEqual(self.assertParsed("", "-loud"), ["", "-loud"])

    def test_errors(self) -> None:
        """What is wrong is said in the words that Go programs use."""
        for argument, text in (
            ("-x", "flag provided but not defined: -x"),
            ("--x=1", "flag provided but not defined: -x"),
            ("-name", "flag needs an argument: -name"),
            ("-loud=maybe", 'invalid boolean value "maybe" for -loud: parse error'),
            ("-loud=", 'invalid boolean value "" for -loud: parse error'),
            ("---name", "bad flag syntax: ---name"),
            ("-=x", "bad flag syntax: -=x"),
            ("--=x", "bad flag syntax: --=x"),
        ):
            error = self.assertRaises(FlagError, parseFlags, SOME, [argument])
            self.assertEqual(str(error), text)

    def test_help(self) -> None:
        """C{-h} and C{-help} ask for help, unless they are a value."""
        for argument in ("-h", "--h", "-help", "--help"):
            self.assertRaises(HelpWanted, parseFlags, SOME, [argument])
        self.assertParsed("-name", "-h", name="-h")

    def test_usage(self) -> None:
        """The usage has all flags in order, with their defaults."""
        self.assertEqual(
            usage("it", SOME),
            "Usage of it:\n"
            "  -loud\n"
            "    \tbe loud\n"
            "  -name string\n"
            '    \ta name (default "nobody")\n',
        )


class CommandTests(SynchronousTestCase):
    """
    Tests for L{main}, up to the start of the daemon.
    """

    def setUp(self) -> None:
        """Keep the daemon from running."""
        self.started: list[Settings] = []
        self.patch(ccproxy_command, "_run", lambda settings, read: self.started.append(settings))
        self.patch(os, "environ", {})

    def run_(self, *arguments: str) -> tuple[int, str, str]:
        """The exit status, stdout and stderr of the command."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
        return status, out.getvalue(), err.getvalue()

    def assertStarted(self, *arguments: str, **settings: Any) -> None:
        """Check that the daemon would start with these settings."""
        self.assertEqual(self.run_(*arguments), (0, "", ""))
        pod = settings.get("pod")
        historic = {
            "logLevel": "warn",
            "logFormat": "logfmt",
            "logTo": "stderr,syslog" if pod else "stderr",
            "ksm": "initial" if pod else "auto",
        }
        self.assertEqual(self.started.pop(), Settings(**{**historic, **settings}))

    def test_defaults(self) -> None:
        """Without a flag it is the daemon of the whole machine, and it logs little."""
        self.assertStarted(socketPath=DEFAULT_SOCKET, pod=False)

    def test_uri(self) -> None:
        """C{-uri} makes a daemon for one pod, from a URI or a bare path."""
        for uri in ("unix:///run/p.sock", "unix:/run/p.sock", "/run/p.sock"):
            self.assertStarted("-uri", uri, socketPath="/run/p.sock", pod=True)

    def test_badURI(self) -> None:
        """What is no path of a socket is a bad value."""
        for uri in ("tcp://host:1", "unix://host/path", "relative"):
            status, _, err = self.run_("-uri", uri)
            self.assertEqual(status, 2)
            self.assertTrue(err.startswith(f'invalid value "{uri}" for flag -uri: '), err)
        self.assertEqual(self.started, [])

    def test_socketPath(self) -> None:
        """C{-socket-path} wins, and does not undo pod mode."""
        self.assertStarted("-socket-path=/run/q.sock", socketPath="/run/q.sock")
        self.assertStarted(
            "-socket-path", "/run/q.sock", "-uri=/run/p.sock", socketPath="/run/q.sock", pod=True
        )

    def test_emptyPaths(self) -> None:
        """An empty path is none, as it was."""
        self.assertStarted("-socket-path=", "-uri=", socketPath=DEFAULT_SOCKET)

    def test_longPath(self) -> None:
        """A path that no socket can have is refused."""
        status, _, err = self.run_("-socket-path", "/" + "x" * 107)
        self.assertEqual(status, 1)
        self.assertIn("at most 107", err)

    def test_level(self) -> None:
        """C{-log} takes all the historic names, in any letter case."""
        for name, level in (("Debug", "debug"), ("WARNING", "warn"), ("panic", "error")):
            self.assertStarted("-log", name, logLevel=level)

    def test_environment(self) -> None:
        """The level in the environment wins, even over a bad one."""
        os.environ["CC_PROXY_LOG_LEVEL"] = "info"
        self.assertStarted("-log", "debug", logLevel="info")
        self.assertStarted("-log", "loud", logLevel="info")

    def test_badLevel(self) -> None:
        """An unknown level ends it with status 1, wherever it comes from."""
        self.assertEqual(self.run_("-log", "loud")[0], 1)
        self.assertRaises(
            BadSetting,
            settingsFrom,
            {"uri": "", "socket-path": "", "log": "warn", "ksm": "auto"},
            {"CC_PROXY_LOG_LEVEL": "loud"},
        )

    def test_ksm(self) -> None:
        """C{-ksm} takes the historic modes, and means nothing in pod mode."""
        for mode in ("off", "initial", "auto"):
            self.assertStarted("-ksm", mode, ksm=mode)
            self.assertStarted("-ksm", mode, "-uri=/run/p.sock", socketPath="/run/p.sock", pod=True)

    def test_acceptedFlags(self) -> None:
        """The flags for profiles are accepted."""
        self.assertStarted("-pprof", "-pprof-host=h", "-pprof-port=0x10", pprof=True)

    def test_badValues(self) -> None:
        """Their values are checked; a bad one gives the usage on stderr and status 2."""
        for argument in (
            "-ksm=on",
            "-pprof=x",
            "-pprof-port=x",
            "-pprof-port=65536",
            "-pprof-port=-1",
            "-nothing",
        ):
            status, out, err = self.run_(argument)
            self.assertEqual((status, out), (2, ""))
            self.assertIn("\nUsage of cc-proxy:\n", err)

    def test_help(self) -> None:
        """C{-h} shows every flag, on stderr as Go does, and ends with status 0."""
        status, out, err = self.run_("-h")
        self.assertEqual((status, out), (0, ""))
        for flag in FLAGS:
            self.assertIn(f"  -{flag.name}", err)

    def test_version(self) -> None:
        """C{-version} wins over what else is wrong."""
        self.assertEqual(self.run_("-version", "-log=x"), (0, f"Version: {__version__}\n", ""))

    def test_leftovers(self) -> None:
        """Arguments that are no flags are ignored, as they were, but not silently."""
        status, _, err = self.run_("-log=info", "uri", "x")
        self.assertEqual((status, err), (0, "cc-proxy: ignored, for it is no flag: uri x\n"))

    @given(st.lists(st.text() | st.sampled_from([f"-{flag.name}" for flag in FLAGS])))
    def test_anything(self, arguments: list[str]) -> None:
        """Any command line starts the daemon or ends with a status and a text."""
        status, out, err = self.run_(*arguments)
        self.assertIn(status, (0, 1, 2))
        self.assertTrue(out or err or self.started.pop())
