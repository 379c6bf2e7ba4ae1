"""
Shims and the real daemon: claiming a token, leaving, and coming back.
"""

from __future__ import annotations

import time

from ccproxy.test.processes import ProcessTestCase
from ccproxy.testing.client import BlockingClient, commandFrame, failure, success
from ccproxy.wire.codes import Command, ControlCode, FrameType, Stream
from ccproxy.wire.frames import encodeStream


class ClaimingTests(ProcessTestCase):
    """ConnectShim."""

    def test_unknown(self) -> None:
        """An unknown token is an error that names it; the connection may try another."""
        vm, client = self.vm(1), self.client()
        for token in ("none-such", "", "A" * 43 + "="):
            text = client.refused(Command.CONNECT_SHIM, {"token": token})
            self.assertIn(f"unknown token: {token}", text)
        client.connectShim(vm.tokens[0])

    def test_held(self) -> None:
        """A token that a live connection holds is refused, to others and to its own shim."""
        vm = self.vm(2)
        shim = self.shim(vm.tokens[0])
        text = self.client().refused(Command.CONNECT_SHIM, {"token": vm.tokens[0]})
        self.assertIn(f"token already claimed: {vm.tokens[0]}", text)
        for token in vm.tokens:
            shim.refused(Command.CONNECT_SHIM, {"token": token})
        self.assertSays(vm.start(shim=shim))
        self.client().connectShim(vm.tokens[1])

    def test_notAwaited(self) -> None:
        """A shim need not wait for the answer before it sends stdin and signals."""
        vm = self.vm(1)
        shim = self.client()
        shim.send(
            commandFrame(Command.CONNECT_SHIM, {"token": vm.tokens[0]})
            + encodeStream(Stream.STDIN, b"ahead")
            + commandFrame(Command.SIGNAL, {"signalNumber": 10})
        )
        success(shim.response(Command.CONNECT_SHIM))
        process = vm.start(shim=shim)
        self.assertEqual(vm.agent.stdin(process.number, 5), b"ahead")
        success(shim.response(Command.SIGNAL))
        self.assertEqual(vm.agent.data(ControlCode.KILLCONTAINER)["signal"], 10)

    def test_refusedThenMore(self) -> None:
        """What a shim sent behind a refused claim is discarded; the error still reaches it."""
        shim = self.client()
        shim.send(
            commandFrame(Command.CONNECT_SHIM, {"token": "none-such"})
            + encodeStream(Stream.STDIN, b"x" * 8192) * 20
            + commandFrame(Command.SIGNAL, {"signalNumber": 15})
        )
        failure(shim.response(Command.CONNECT_SHIM))
        self.assertIn("client isn't a shim", failure(shim.response(Command.SIGNAL)))

    def test_refusedAndGone(self) -> None:
        """The error also reaches one that closes its sending side at once."""
        shim = self.client()
        shim.send(commandFrame(Command.CONNECT_SHIM, {"token": "none-such"}))
        shim.socket.shutdown(1)
        self.assertEqual([f.error for f in shim.waitClosed()], [True])

    def test_otherCommands(self) -> None:
        """A shim may use the other commands too."""
        process = self.process()
        process.shim.attachVM(process.vm.id)
        process.shim.hyper("ping")
        self.assertSays(process)


class DisconnectingTests(ProcessTestCase):
    """DisconnectShim."""

    def disconnect(self, shim: BlockingClient) -> None:
        """Send DisconnectShim: the connection closes, without a response."""
        shim.command(Command.DISCONNECT_SHIM)
        types = [frame.type for frame in shim.waitClosed()]
        self.assertNotIn(FrameType.RESPONSE, types)

    def test_noShim(self) -> None:
        """It is an error from a client that is no shim, which stays connected."""
        client = self.client()
        self.assertIn("client isn't a shim", client.refused(Command.DISCONNECT_SHIM))
        client.probe()

    def test_endsToken(self) -> None:
        """The token cannot be claimed again, nor start anything."""
        vm = self.vm(1)
        self.disconnect(self.shim(vm.tokens[0]))
        text = self.client().refused(Command.CONNECT_SHIM, {"token": vm.tokens[0]})
        self.assertIn("unknown token", text)
        vm.startRefused()

    def test_afterExit(self) -> None:
        """A shim disconnects when it has its status, as cc-shim does."""
        process = self.process()
        process.exit(0)
        self.assertEqual(process.shim.exited(), 0)
        self.disconnect(process.shim)

    def test_running(self) -> None:
        """One that leaves a running process ends its stdin; its output is dropped."""
        vm = self.vm(2)
        gone, other = vm.start(0), vm.start(1)
        gone.shim.stdin(b"last words")
        self.disconnect(gone.shim)
        vm.agent.waitEOF(gone.number)
        self.assertEqual(vm.agent.pieces(gone.number)[-1], b"")
        for _ in range(50):
            gone.say(b"for nobody" * 400)
        gone.exit(1)
        self.assertSays(other)

    def test_failsStart(self) -> None:
        """P11: a start that waits for the agent with this token is still answered."""
        vm = self.vm(1)
        shim = self.shim(vm.tokens[0])
        vm.agent.answers[ControlCode.NEWCONTAINER] = None
        vm.startLater()
        vm.agent.command(ControlCode.NEWCONTAINER)
        self.disconnect(shim)
        vm.agent.sendControl(ControlCode.ACK)
        vm.client.response(Command.HYPER)
        vm.usable()


class ReturningTests(ProcessTestCase):
    """P7: a shim that goes without DisconnectShim may come back."""

    def test_beforeStart(self) -> None:
        """P7: it may go and come back before its process is started, at once."""
        vm = self.vm(1)
        for _ in range(20):
            self.shim(vm.tokens[0]).close()
        self.assertSays(vm.start())

    def test_running(self) -> None:
        """P7: it gets the output that follows, and may send stdin; its leaving is no EOF."""
        process = self.process()
        process.shim.stdin(b"one")
        process.shim.close()
        process.shim = self.shim(process.token)
        process.shim.stdin(b"two")
        self.assertEqual(process.vm.agent.stdin(process.number, 6), b"onetwo")
        self.assertNotIn(b"", process.vm.agent.pieces())
        self.assertSays(process)
        process.exit(9)
        self.assertEqual(process.shim.untilExit().status, 9)

    def test_keptOutput(self) -> None:
        """P7: what the process wrote meanwhile comes first, in order, status included."""
        process = self.process()
        self.assertSays(process, b"before")
        process.shim.close()
        time.sleep(0.05)
        out = b"".join(b"out %d;" % n for n in range(500))
        for n in range(500):
            process.say(b"out %d;" % n)
            process.complain(b"err")
        process.exit(42)
        process.vm.usable()
        shim = self.shim(process.token)
        self.assertOutput(shim, out, b"err" * 500, 42)

    def test_statusAgain(self) -> None:
        """P7: a status that DisconnectShim has not acknowledged is sent to whoever comes."""
        process = self.process()
        process.exit(42)
        for _ in range(3):
            self.assertEqual(process.shim.untilExit().status, 42)
            process.shim.close()
            process.shim = self.shim(process.token)
        process.shim.command(Command.DISCONNECT_SHIM)
        process.shim.waitClosed()
        self.client().refused(Command.CONNECT_SHIM, {"token": process.token})

    def test_unread(self) -> None:
        """P7: output that waited for a shim which did not read goes to its successor."""
        process = self.process()
        data = bytes(n % 251 for n in range(600_000))
        for at in range(0, len(data), 8192):
            process.say(data[at : at + 8192])
        process.vm.usable()
        taken = process.shim.output(Stream.STDOUT, 100_000)
        while process.shim.read(0.05):
            if len(process.shim.frames) > 10:
                break
        taken += b"".join(frame.payload for frame in process.shim.frames)
        process.shim.close()
        process.exit(3)
        output = self.shim(process.token).untilExit()
        self.assertEqual(output.status, 3)
        self.assertTrue(data.startswith(taken))
        # What the kernel had taken for the old connection is gone with it, whole frames of it.
        self.assertTrue(data.endswith(output.stdout))
        self.assertGreater(len(output.stdout), 100_000)

    def test_others(self) -> None:
        """P7, P9: a shim that dies while its process writes disturbs no other."""
        vm = self.vm(2)
        victim, other = vm.start(0), vm.start(1)
        victim.shim.close()
        for n in range(50):
            victim.say(b"x" * 1000)
            other.say(b"%03d" % n)
        other.exit(0)
        self.assertOutput(other.shim, b"".join(b"%03d" % n for n in range(50)), b"", 0)

    def test_killedShim(self) -> None:
        """A signal sent just before the connection ends is carried out: the shim's last word."""
        process = self.process(container="c")
        process.shim.send(commandFrame(Command.SIGNAL, {"signalNumber": 9}))
        process.shim.close()
        data = process.vm.agent.data(ControlCode.KILLCONTAINER)
        self.assertEqual((data["container"], data["signal"]), ("c", 9))

    def test_cutFrame(self) -> None:
        """Stdin is taken in whole frames: a cut one goes with its connection."""
        process = self.process()
        whole, cut = encodeStream(Stream.STDIN, b"whole"), encodeStream(Stream.STDIN, b"cut off")
        process.shim.send(whole + cut[:-1])
        process.vm.agent.stdin(process.number, 5)
        process.shim.close()
        shim = self.shim(process.token)
        shim.stdin(b" again")
        self.assertEqual(process.vm.agent.stdin(process.number, 11), b"whole again")
