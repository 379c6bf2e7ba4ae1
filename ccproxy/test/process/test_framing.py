"""
The real daemon and the bytes of its clients: frames in any pieces, and bytes that are no frames.
"""

from __future__ import annotations

import random
import socket
import time

from ccproxy.test.processes import ProcessTestCase
from ccproxy.testing.agent import Answer, echo
from ccproxy.testing.client import (
    BlockingClient,
    commandFrame,
    failure,
    hyperPayload,
    registration,
    success,
)
from ccproxy.testing.daemon import eventually
from ccproxy.wire.codes import Command, ControlCode, FrameType, Notification, Stream
from ccproxy.wire.frames import HEADER, encodeFrame

NO_VM = commandFrame(Command.ATTACH_VM, {"containerId": "none-such"})
#: Long enough for two writes not to be read at once.
MOMENT = 0.002
WITH_PAYLOAD = [command for command in Command if command is not Command.DISCONNECT_SHIM]


def header(
    version: int = 2, words: int = 3, flags: int = 0, opcode: int = 2, length: int = 0
) -> bytes:
    """A header with anything in it."""
    return HEADER.pack(version, words, flags, opcode, length)


class PiecesTests(ProcessTestCase):
    """P1: a stream has no boundaries."""

    def assertNoVM(self, client: BlockingClient) -> None:
        """The next response is what L{NO_VM} is answered with."""
        self.assertIn("unknown containerID: none-such", failure(client.response(2)))

    def test_cutAnywhere(self) -> None:
        """P1: a frame may be cut at any byte."""
        client = self.client()
        for cut in range(1, len(NO_VM)):
            client.send(NO_VM[:cut])
            time.sleep(MOMENT)
            client.send(NO_VM[cut:])
            self.assertNoVM(client)

    def test_byteByByte(self) -> None:
        """P1: two frames may come a byte at a time, without a break between them."""
        client = self.client()
        for byte in NO_VM * 2:
            client.send(bytes([byte]))
            time.sleep(MOMENT / 2)
        self.assertNoVM(client)
        self.assertNoVM(client)

    def test_merged(self) -> None:
        """P1: a hundred commands in one write are answered one by one, in order."""
        vm = self.vm()
        vm.agent.answers[ControlCode.PING] = echo
        numbers = range(100)
        vm.client.send(
            b"".join(commandFrame(Command.HYPER, hyperPayload("ping", n)) for n in numbers)
        )
        answers = [success(vm.client.response(Command.HYPER)) for _ in numbers]
        self.assertEqual(answers, [b"%d" % n for n in numbers])

    def test_wholeConversation(self) -> None:
        """P1: RegisterVM holds back what was sent with it; then all follow in order."""
        client, agent, name = self.client(), self.agent(readyDelay=0.2), self.unique()
        client.send(
            b"".join([
                commandFrame(Command.REGISTER_VM, registration(name, agent)),
                commandFrame(Command.HYPER, hyperPayload("ping")),
                NO_VM,
                commandFrame(Command.UNREGISTER_VM, {"containerId": name}),
                commandFrame(Command.HYPER, hyperPayload("ping")),
            ])
        )  # fmt: skip
        success(client.response(Command.REGISTER_VM))
        success(client.response(Command.HYPER))
        self.assertNoVM(client)
        success(client.response(Command.UNREGISTER_VM))
        self.assertIn("not attached", failure(client.response(Command.HYPER)))
        self.assertEqual([m.number for m in agent.commands()], [12])

    def test_longerHeader(self) -> None:
        """P1: what a header has beyond three words is skipped."""
        client = self.client()
        payload = NO_VM[HEADER.size :]
        for words in (4, 7, 255):
            extra = b"\xee" * 4 * (words - 3)
            client.send(header(words=words, length=len(payload)) + extra + payload)
            self.assertNoVM(client)

    def test_reservedBits(self) -> None:
        """P1: reserved bits of a command mean nothing, the error flag included."""
        client = self.client()
        payload = NO_VM[HEADER.size :]
        for flags in (0x10, 0xE0, 0xF0):
            client.send(header(flags=flags, length=len(payload)) + payload)
            self.assertNoVM(client)

    def test_responses(self) -> None:
        """A response has the command's opcode, and the error flag only if it is one."""
        vm = self.vm()
        vm.client.command(Command.HYPER, hyperPayload("ping"))
        vm.client.command(Command.HYPER, hyperPayload("none-such"))
        frames = [vm.client.receive(), vm.client.receive()]
        self.assertEqual(
            [(f.type, f.opcode, f.error) for f in frames], [(1, 3, False), (1, 3, True)]
        )
        self.assertEqual(frames[0].payload, b"")

    def test_halfClosed(self) -> None:
        """A client that shuts down its sending side still gets its answers, then the end."""
        vm = self.vm()
        vm.agent.answers[ControlCode.PING] = Answer(b"pong", delay=0.2)
        client = vm.attach()
        client.command(Command.HYPER, hyperPayload("ping"))
        client.send(NO_VM)
        client.socket.shutdown(socket.SHUT_WR)
        frames = client.waitClosed()
        self.assertEqual([frame.error for frame in frames], [False, True])
        self.assertEqual(frames[0].payload, b"pong")


class BadFramesTests(ProcessTestCase):
    """P2, P3: bytes that are no frames."""

    def refused(self, data: bytes, opcode: int | None) -> str:
        """
        Send what must end the connection, and that one only.

        @param opcode: what the error response must answer, if there must be one.
        @return: the text of the error response.
        """
        other, client = self.client(), self.client()
        client.send(data)
        frames = client.waitClosed()
        other.probe()
        if opcode is None:
            self.assertLessEqual(len(frames), 1)
            return ""
        self.assertEqual([(f.type, f.opcode) for f in frames], [(FrameType.RESPONSE, opcode)])
        return failure(frames[0])

    def test_version(self) -> None:
        """P3: another version closes the connection."""
        for version in (0, 1, 3, 0x202):
            self.refused(header(version=version) + NO_VM, None)

    def test_type(self) -> None:
        """P3: an unknown type closes the connection, without an answer."""
        for kind in (4, 8, 15):
            self.assertEqual(self.refused(header(flags=kind) + NO_VM, None), "")

    def test_shortHeader(self) -> None:
        """P3: a header under three words is answered with an error, then the connection closes."""
        for words in (0, 1, 2):
            text = self.refused(header(words=words, opcode=4) + NO_VM, 4)
            self.assertIn(f"{words} words", text)

    def test_tooLong(self) -> None:
        """P2: a length over the limit is refused from its header alone, and takes no memory."""
        before = self.daemon.memory()
        for length in ((1 << 20) + 1, 1 << 31, (1 << 32) - 1):
            self.assertIn("1048576", self.refused(header(opcode=3, length=length), 3))
            self.refused(header(flags=FrameType.STREAM, opcode=0, length=length), None)
        self.assertLess(self.daemon.memory() - before, 8 << 20)

    def test_longest(self) -> None:
        """P2: a payload of exactly 1 MiB is read."""
        payload = b'{"containerId": "none-such"}'.ljust(1 << 20)
        self.assertIn("none-such", self.client().refused(Command.ATTACH_VM, payload))

    def test_nothingFollows(self) -> None:
        """P2, P3: what follows a bad frame is not carried out."""
        vm = self.vm()
        client = vm.attach()
        ping = commandFrame(Command.HYPER, hyperPayload("ping"))
        client.send(ping + header(opcode=3, length=1 << 31) + ping * 3)
        frames = client.waitClosed()
        self.assertEqual([frame.error for frame in frames], [False, True])
        vm.usable()
        self.assertEqual(len(vm.agent.commands()), 2)

    def test_unfinished(self) -> None:
        """P3: a client that leaves in the middle of a frame disturbs nobody."""
        vm = self.vm()
        for cut in range(1, len(NO_VM)):
            client = vm.attach()
            client.send(NO_VM[:cut])
            client.close()
        vm.usable()

    def test_garbage(self) -> None:
        """P3: no bytes of any kind harm the daemon."""
        rng = random.Random(3)
        vm = self.vm()
        for n in range(200):
            client = self.client()
            start = [b"", b"\0\2\3", NO_VM[:12], NO_VM][n % 4]
            client.send(start + rng.randbytes(rng.randrange(1, 300)))
            client.close()
        vm.usable()


class UnwantedFramesTests(ProcessTestCase):
    """P3: frames that are whole, but not for this connection."""

    def test_unknownCommand(self) -> None:
        """P3: an unknown opcode gets an error; the connection stays."""
        client = self.client()
        for opcode in (7, 100, 255):
            self.assertIn(str(opcode), client.refused(opcode, {}))
        client.probe()

    def test_wrongDirection(self) -> None:
        """P3: responses, notifications and output from a client are dropped, and logged once."""
        client = self.client()
        for _ in range(3):
            client.send(encodeFrame(FrameType.RESPONSE, Command.HYPER, b"{}"))
            client.send(encodeFrame(FrameType.NOTIFICATION, Notification.PROCESS_EXITED, b"\0"))
            client.send(encodeFrame(FrameType.STREAM, Stream.STDOUT, b"out"))
            client.send(encodeFrame(FrameType.STREAM, 77, b"out"))
        client.probe()
        client.silent()

    def test_stdinOfARuntime(self) -> None:
        """P3: stdin from a client that is no shim reaches no process."""
        process = self.process()
        client = process.vm.attach()
        client.stdin(b"intruder")
        client.stdin(b"")
        client.probe()
        process.shim.stdin(b"right")
        self.assertEqual(process.vm.agent.stdin(process.number, 5), b"right")
        self.assertEqual(process.vm.agent.pieces(), [b"right"])


class BadPayloadsTests(ProcessTestCase):
    """P3: payloads that do not fit; the connection stays."""

    def test_noJSON(self) -> None:
        """P3: what is no JSON, or no object, gets an error that names the command."""
        client = self.client()
        for command in WITH_PAYLOAD:
            for payload in (b"", b"{", b"}{", b"\xff\xfe", b"nonsense", b"null", b"[]", b"7",
                            b'{"containerId": }', b"[" * 100_000):  # fmt: skip
                text = client.refused(command, payload)
                self.assertIn(f"malformed {command.title} command", text)
        client.probe()

    def test_fields(self) -> None:
        """P3: the error names the field that is missing or of the wrong type."""
        client, agent, name = self.client(), self.agent(), self.unique()
        right: dict[Command, dict[str, object]] = {
            Command.REGISTER_VM: registration(name, agent),
            Command.UNREGISTER_VM: {"containerId": name},
            Command.ATTACH_VM: {"containerId": name},
            Command.HYPER: {"hyperName": "ping"},
            Command.CONNECT_SHIM: {"token": "t"},
            Command.SIGNAL: {"signalNumber": 9},
        }
        for command, payload in right.items():
            for field in payload.keys() - {"numIOStreams"}:
                less = {key: value for key, value in payload.items() if key != field}
                self.assertIn(field, client.refused(command, less))
                wrongs: list[object] = [None, [], {}, 1.5, True]
                for wrong in wrongs:
                    self.assertIn(field, client.refused(command, {**payload, field: wrong}))
        self.assertIn(
            "unknown containerID", client.refused(Command.ATTACH_VM, {"containerId": name})
        )

    def test_unknownKeys(self) -> None:
        """Keys that nobody knows are ignored."""
        vm = self.vm()
        vm.client.accepted(Command.HYPER, {"hyperName": "ping", "future": {"a": [1]}})
        vm.client.accepted(Command.ATTACH_VM, {"containerId": vm.id, "future": None})

    def test_oddNames(self) -> None:
        """P3, P18: a containerId may be any text; it makes no trouble in the log either."""
        for odd in ("é世\U0001f600", "a b", 'q"uote', "new\nline", "nul\0", "\x1b[31m", "x" * 900):
            client, agent, name = self.client(), self.agent(), self.unique(odd)
            client.registerVM(name, agent)
            client.hyper("ping")
            client.unregisterVM(name)
            self.assertIn(name, client.refused(Command.ATTACH_VM, {"containerId": name}))
        eventually(lambda: "line-" in self.newLog(), "the odd names in the log")
        for line in self.newLog().splitlines():
            self.assertFalse(line.startswith("line-"), line)
            self.assertNotIn("\x1b", line)
            self.assertNotIn("\0", line)
