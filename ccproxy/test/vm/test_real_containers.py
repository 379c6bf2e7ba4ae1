"""
Containers in a real VM: what they see, what they say, and how they end.
"""

from __future__ import annotations

import hashlib
import os
import time

from ccproxy.test.vm.realvm import RealVMTestCase
from ccproxy.wire.codes import Command, Stream

SIGKILL, SIGTERM, SIGWINCH = 9, 15, 28
MEGABYTE = 1_000_000
#: How long a reader stalls, in seconds.
STALL = 10.0


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


class WorldTests(RealVMTestCase):
    """What a container sees of the world."""

    def test_kernel(self) -> None:
        """It runs on the guest's kernel, and the VM has the name that startpod gave it."""
        out, _, status = self.sh("uname -r; hostname").finish()
        kernel, hostname = out.decode().split()
        self.assertEqual((hostname, status), ("shared", 0))
        with open(self.real.path("console.log")) as console:
            self.assertIn(f"Linux version {kernel}", console.read())

    def test_namespaces(self) -> None:
        """Its first process is process 1, it sees no other's, and its mounts are its own."""
        other = self.sh("echo there; read line")
        other.waitFor(b"there")
        running = self.sh("echo $$; ls -d /proc/[0-9]*; cut -d' ' -f2 /proc/mounts; ls /dev")
        out, err, status = running.finish()
        self.assertEqual((err, status), (b"", 0))
        first, *processes = out.decode().split()
        self.assertEqual(first, "1")
        numbers = [word for word in processes if word.startswith("/proc/")]
        self.assertIn("/proc/1", numbers)
        self.assertLessEqual(len(numbers), 2)
        self.assertLessEqual({"/proc", "/dev", "/tmp", "/dev/pts"}, set(processes))
        self.assertNotIn("/run/share", processes)
        self.assertFalse([word for word in processes if word.startswith("vport")], out)
        other.shim.stdin(b"go\n")
        self.assertEqual(other.finish()[2], 0)

    def test_root(self) -> None:
        """Its root is the folder that the host shares, which the host alone may change."""
        running = self.sh("ls /; echo new > /file; echo $? > /tmp/own; cat /tmp/own")
        out, err, status = running.finish()
        self.assertIn(b"\nbin\n", b"\n" + out)
        self.assertTrue(out.endswith(b"\n1\n"), out)
        self.assertIn(b"Read-only file system", err)
        self.assertEqual(status, 0)

    def test_environment(self) -> None:
        """It gets its environment and its working directory."""
        running = self.sh("echo $A; pwd", envs=[{"env": "A", "value": "b c"}], workdir="/etc")
        self.assertEnds(running, b"b c\n/etc\n")

    def test_refused(self) -> None:
        """What cannot be started is refused, with the reason."""
        self.assertIn("no folder 'none/rootfs'", self.refused("sh", image="none"))
        self.assertIn("no folder", self.refused("sh", image="../../../bin"))
        self.assertIn("cannot start 'no-such'", self.refused("no-such"))
        self.assertIn("/no/such", self.refused("sh", workdir="/no/such"))
        self.assertEnds(self.sh("echo fine"), b"fine\n")

    def test_together(self) -> None:
        """What is started in a container later is in it, and ends with it."""
        first = self.sh("echo one > /tmp/mark; echo ready; read line; exit 4")
        first.waitFor(b"ready")
        second = self.exec(first, "sh", "-c", "cat /tmp/mark; sleep 600")
        second.waitFor(b"one")
        third = self.exec(first, "sh", "-c", "echo $(ps | grep -c sleep); echo bad >&2; exit 5")
        out, err, status = third.finish()
        self.assertGreaterEqual(int(out), 1)
        self.assertEqual((err, status), (b"bad\n", 5))
        first.shim.stdin(b"\n")
        self.assertEqual(first.finish()[2], 4)
        self.assertEqual(second.finish()[2], 128 + SIGKILL)

    def test_listed(self) -> None:
        """Its processes can be listed from outside, those in the background too."""
        running = self.sh("(sleep 600 &); echo ready; read line")
        running.waitFor(b"ready")
        client = self.real.client()
        self.addCleanup(client.close)
        listing = client.hyper(
            "pscontainer", {"container": running.container, "format": "table", "psargs": ["-ef"]}
        )
        heading, *lines = listing.decode().splitlines()
        self.assertIn("PID", heading)
        self.assertEqual([line.split()[2:] for line in lines][1:], [["sleep", "600"]])
        running.shim.stdin(b"\n")
        self.assertEqual(running.finish()[2], 0)


class StreamTests(RealVMTestCase):
    """Bytes through virtio-serial."""

    def test_separate(self) -> None:
        """stdout and stderr are two streams, and stdin has an end."""
        running = self.sh("cat; echo oops >&2; exit 7")
        running.shim.stdin(b"in ")
        running.shim.stdin(b"put")
        running.shim.stdin(b"")
        self.assertEnds(running, b"in put", b"oops\n", 7)

    def test_twentyMegabytesIn(self) -> None:
        """20 MB of stdin arrive as they were sent."""
        data = os.urandom(20 * MEGABYTE)
        running = self.run_("sha256sum")
        for offset in range(0, len(data), 8192):
            running.shim.stdin(data[offset : offset + 8192])
        running.shim.stdin(b"")
        self.assertEnds(running, _digest(data) + b"  -\n")

    def test_twentyMegabytesOut(self) -> None:
        """20 MB of stdout arrive as they were written, the exit status behind them."""
        making = "head -c 20000000 /dev/urandom > /tmp/data; sha256sum < /tmp/data >&2"
        out, err, status = self.sh(f"{making}; cat /tmp/data").finish()
        self.assertEqual((len(out), status), (20 * MEGABYTE, 0))
        self.assertEqual(err.split()[0], _digest(out))

    def test_stalledReader(self) -> None:
        """A reader that stalls loses nothing, and holds up no other session of its VM."""
        stalled = self.sh("yes 0123456789abcde | head -c 900000; echo end >&2; read l; exit 3")
        other = self.run_("cat")
        begun, echoes = time.monotonic(), 0
        while time.monotonic() < begun + STALL:
            asked = time.monotonic()
            other.shim.stdin(b"%08d" % echoes)
            self.assertEqual(other.shim.output(Stream.STDOUT, 8), b"%08d" % echoes)
            self.assertLess(time.monotonic() - asked, STALL / 2)
            echoes += 1
            time.sleep(0.25)
        self.assertGreater(echoes, 10)
        stalled.shim.stdin(b"\n")
        self.assertEnds(stalled, b"0123456789abcde\n" * (900000 // 16), b"end\n", 3)
        other.shim.stdin(b"")
        self.assertEqual(other.finish()[2], 0)

    def test_floodedReader(self) -> None:
        """One that stalls with more than the proxy keeps for it loses nothing either."""
        stalled = self.sh("yes 0123456789abcde | head -c 8000000; exit 3")
        time.sleep(STALL)
        self.assertEnds(stalled, b"0123456789abcde\n" * (8000000 // 16), b"", 3)


class TerminalTests(RealVMTestCase):
    """Processes with a terminal."""

    def test_size(self) -> None:
        """The window's size reaches the terminal, and SIGWINCH the program."""
        script = "tty; stty -echo; trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done"
        running = self.sh(script, terminal=True)
        self.assertIn(b"/dev/pts/", running.waitFor(b"ready\r\n"))
        for rows, columns in ((24, 80), (50, 132)):
            running.shim.signal(SIGWINCH, rows=rows, columns=columns)
            running.waitFor(b"%d %d\r\n" % (rows, columns))
        running.shim.signal(SIGKILL)
        self.assertEqual(running.finish()[2], 128 + SIGKILL)

    def test_keys(self) -> None:
        """Ctrl-C interrupts what runs in the foreground; Ctrl-D ends the shell."""
        running = self.run_("sh", "-i", terminal=True, envs=[{"env": "PS1", "value": "@ "}])
        running.waitFor(b"@ ")
        running.shim.stdin(b"sleep 600\r")
        running.waitFor(b"sleep 600\r\n")
        time.sleep(0.5)
        running.shim.stdin(b"\x03")
        running.waitFor(b"@ ")
        running.shim.stdin(b"echo $?\r")
        # Keys that come before the prompt may be dropped by the shell.
        running.waitFor(b"130\r\n@ ")
        running.shim.stdin(b"\x04")
        self.assertEqual(running.finish()[2], 0)

    def test_exec(self) -> None:
        """A process that is started later can have a terminal too."""
        first = self.run_("cat")
        second = self.exec(first, "sh", "-c", "stty size; test -t 0 && exit 6", terminal=True)
        self.assertEqual(second.finish()[2], 6)
        first.shim.stdin(b"")
        self.assertEqual(first.finish()[2], 0)


class EndTests(RealVMTestCase):
    """Signals, and exit statuses."""

    def test_statuses(self) -> None:
        """The exit status is the process's."""
        for status in (0, 1, 42, 255):
            self.assertEnds(self.sh(f"exit {status}"), b"", b"", status)

    def test_caught(self) -> None:
        """A signal that the process handles."""
        running = self.sh("trap 'echo caught; exit 9' TERM; echo go; while :; do sleep 0.1; done")
        running.waitFor(b"go")
        running.shim.signal(SIGTERM)
        self.assertEnds(running, b"caught\n", b"", 9)

    def test_killed(self) -> None:
        """SIGKILL ends process 1 of a container, and with it all others."""
        running = self.sh("sleep 600 & echo go; wait")
        running.waitFor(b"go")
        running.shim.signal(SIGKILL)
        self.assertEqual(running.finish()[2], 128 + SIGKILL)
        client = self.real.client()
        self.addCleanup(client.close)
        client.hyper("removecontainer", {"container": running.container})

    def test_notForOthers(self) -> None:
        """A signal to a process started later is refused by this agent, and says so."""
        first = self.run_("cat")
        second = self.exec(first, "cat")
        text = second.shim.refused(Command.SIGNAL, {"signalNumber": SIGTERM})
        self.assertIn("execcmd", text)
        first.shim.stdin(b"")
        self.assertEqual(second.finish()[2], 128 + SIGKILL)
