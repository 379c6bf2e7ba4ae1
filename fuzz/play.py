"""
The whole client protocol against the core: several clients, a few VMs, and time, as the input says.

Whatever happens, no exception leaves the core, what it holds stays within its limits and is counted
right, what it sends is in order and for whom it is meant; and once everybody has left and time has
passed, nothing is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from ccproxy.core.session import Session
from ccproxy.test.memory import World, command, registration, startData
from ccproxy.wire.codes import Command, ControlCode, Dialect, Stream
from ccproxy.wire.frames import encodeStream
from ccproxy.wire.messages import encodeIO

from .cast import Guest, Host
from .reading import Input, pieces

KIB = 1 << 10
LIMITS = {
    "maxClients": 8,
    "maxVMs": 3,
    "maxTokens": 6,
    "maxCommands": 4,
    "maxUnanswered": 4,
    "maxFrame": 4 * KIB,
    "maxMessage": 16 * KIB,
    "sessionBuffer": 4 * KIB,
    "totalBuffer": 12 * KIB,
    "crowdedBuffer": KIB,
    "clientBuffer": KIB,
}
#: What can be held beyond a limit: a frame or message more, and the exit status.
EXCESS = 16 * KIB + 64
#: The longest response here, with its header.
MOST_RESPONSE = KIB
DIALECTS = [None, None, Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1]
NAMES = ["a", "b", "c", "d", ""]
DELAYS = [0.01, 0.1, 1, 3, 5, 10, 30, 60, 120, 600, 3600]
SIGNALS = [9, 15, 2, 28, 64, 65]
HYPERS = ["ping", "startpod", "destroypod", "version", "pscontainer", "signalprocess", "nonsense"]
STARTS = ["newcontainer", "execcmd"]
MOST_GUESTS = 16
MOST_STEPS = 400


class Play:
    """One run."""

    def __init__(self, data: bytes) -> None:
        self.input = source = Input(data)
        self.world = World(source.choice(DIALECTS), **LIMITS)
        self.registry = self.world.registry
        self.limits = self.registry.context.limits
        count = itertools.count()
        self.tokens: list[str] = []
        self.registry.makeToken = lambda: f"{next(count):043}="
        self.guests: list[Guest] = []
        self.hosts: list[Host] = []
        self.pure = True

    # What the input chooses from

    def guest(self) -> Guest:
        """A client that is there, or a new one."""
        number = self.input.byte()
        if not self.guests or (number >= 240 and len(self.guests) < MOST_GUESTS):
            self.guests.append(Guest(self.world))
            return self.guests[-1]
        return self.guests[number % len(self.guests)]

    def host(self) -> Host | None:
        """An agent, if there is one."""
        number = self.input.byte()
        return self.hosts[number % len(self.hosts)] if self.hosts else None

    def token(self) -> str:
        """A token that there is, was, or never was."""
        number = self.input.byte()
        return f"{number % 24:043}="

    def number(self) -> int:
        """A sequence number, most often one that is used."""
        number = self.input.byte()
        used = sorted({n for host in self.hosts for n in host.vm.processes.numbers})
        return used[number % len(used)] if used and number < 250 else number

    # What can happen

    def clientSendsBytes(self) -> None:
        self.guest().feed(self.input.short())

    def clientCommands(self) -> None:
        guest, source = self.guest(), self.input
        opcode = source.choice([*Command, 7])
        guest.feed(command(opcode, source.short()))

    def register(self) -> None:
        guest, name, more = self.guest(), self.input.choice(NAMES), self.input.byte()
        guest.feed(command(Command.REGISTER_VM, registration(name, more % 4)))
        if self.world.connector.wanted and more < 240:
            self.connect()
            if more < 192 and self.hosts:
                self.hosts[-1].say(ControlCode.READY)

    def connect(self) -> None:
        wanted = self.world.connector.wanted
        if wanted:
            vm = wanted.pop()
            if vm not in self.world.connector.abandoned:
                self.hosts.append(Host(vm))

    def connectFails(self) -> None:
        wanted = self.world.connector.wanted
        if wanted:
            vm = wanted.pop()
            if vm not in self.world.connector.abandoned:
                vm.connectFailed("no such socket")

    def attach(self) -> None:
        guest, name = self.guest(), self.input.choice(NAMES)
        request = {"containerId": name, "numIOStreams": self.input.byte() % 5}
        guest.feed(command(Command.ATTACH_VM, request))

    def unregister(self) -> None:
        guest, name = self.guest(), self.input.choice(NAMES)
        guest.feed(command(Command.UNREGISTER_VM, {"containerId": name}))

    def hyper(self) -> None:
        guest, name = self.guest(), self.input.choice(HYPERS)
        guest.feed(command(Command.HYPER, {"hyperName": name, "data": {"container": "c1"}}))

    def start(self) -> None:
        guest, flags, token = self.guest(), self.input.byte(), self.token()
        kind = STARTS[flags & 1]
        process = {"terminal": bool(flags & 2)}
        data = startData(kind, f"c{flags >> 5 & 1}", **process)
        if flags & 4:
            data["process"]["id"] = f"p{flags >> 6}"
        tokens = [] if flags & 24 == 24 else [token]
        guest.feed(command(Command.HYPER, {"hyperName": kind, "tokens": tokens, "data": data}))

    def connectShim(self) -> None:
        guest, token = self.guest(), self.token()
        guest.feed(command(Command.CONNECT_SHIM, {"token": token}))

    def disconnectShim(self) -> None:
        self.guest().feed(command(Command.DISCONNECT_SHIM))

    def signal(self) -> None:
        guest, number = self.guest(), self.input.choice(SIGNALS)
        request = {"signalNumber": number}
        if number == 28:
            request |= {"columns": self.input.byte(), "rows": 24}
        guest.feed(command(Command.SIGNAL, request))

    def stdin(self) -> None:
        guest, size, count = self.guest(), self.input.word() % 4200, self.input.byte() % 8
        frames = encodeStream(Stream.STDIN, bytes(size)) * count
        for piece in pieces(frames, self.input.take(self.input.byte() % 4)):
            guest.feed(piece)

    def clientReads(self) -> None:
        guest, room = self.guest(), self.input.byte()
        guest.connection.makeRoom(None if room == 0 else (room - 1) * 16)

    def clientLeaves(self) -> None:
        guest, gone = self.guest(), self.input.byte() & 1
        guest.connection.end(bool(gone))

    def agentSays(self) -> None:
        host, code = self.host(), self.input.byte()
        if host is not None:
            host.say(code % 28, self.input.short())

    def agentAnswers(self) -> None:
        host, kind = self.host(), self.input.byte()
        if host is not None:
            if kind & 4:
                host.say(ControlCode.NEXT, bytes(4))
            bodies = [b"", b"\0\0\x10\x92", b"\0\0\x10\x94", b"{}"]
            host.say(ControlCode.ERROR if kind & 8 else ControlCode.ACK, bodies[kind & 3])

    def agentTellsEnd(self) -> None:
        host, flags = self.host(), self.input.byte()
        if host is not None:
            process = ["init", "(null)", "3", "p0"][flags & 3]
            body = b'{"event":"finished","container":"c%d","process":"%s","status":7}'
            host.say(23, body % (flags >> 2 & 1, process.encode()))

    def agentSendsBytes(self) -> None:
        host, flags = self.host(), self.input.byte()
        if host is not None:
            self.pure = self.pure and not flags & 1
            (host.io if flags & 1 else host.control).feed(self.input.short())

    def output(self) -> None:
        host, number, size = self.host(), self.number(), self.input.word()
        count = 1 + self.input.byte() % 8
        if host is not None:
            messages = encodeIO(number, bytes([number & 0xFF]) * (size % 3000)) * count
            for piece in pieces(messages, self.input.take(self.input.byte() % 4)):
                host.io.feed(piece)

    def exit(self) -> None:
        host, number = self.host(), self.number()
        if host is not None:
            # On a number of stderr the status is output, which tells its number as all of it does.
            host.exit(number, number & 0xFF)

    def agentReads(self) -> None:
        host, room = self.host(), self.input.byte()
        if host is not None:
            line = host.control if room & 1 else host.io
            line.makeRoom(None if room < 16 else room * 16)

    def agentDrains(self) -> None:
        host = self.host()
        if host is not None:
            host.io.drain()
            host.control.drain()

    def channelEnds(self) -> None:
        host, which = self.host(), self.input.byte()
        if host is not None:
            (host.io if which & 1 else host.control).end(bool(which & 2))

    def timePasses(self) -> None:
        self.wait(self.input.choice(DELAYS))

    # What goes on by itself, and what must hold

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.world.clock.advance(seconds)
        for member in self.guests:
            member.connection.poll()

    def settle(self) -> None:
        """Let what was paused be read on, as transports do by themselves."""
        lines = [guest.connection for guest in self.guests]
        lines += [line for host in self.hosts for line in (host.control, host.io)]
        for line in lines:
            line.pump()

    def sessions(self) -> set[Session]:
        """All that anybody can still find."""
        vms = [*self.registry.vms.values(), *self.registry.leaving]
        found = {session for vm in vms for session in vm.processes.sessions}
        found.update(self.registry.tokens.values())
        found.update(g.client.session for g in self.guests if g.client.session is not None)
        return found

    def check(self) -> None:
        """See that the core is within its limits."""
        limits, registry = self.limits, self.registry
        held = 0
        for session in self.sessions():
            kept = session.shim.outlet.kept if session.shim is not None else 0
            assert session.output.pendingSize == sum(map(len, session.output.pending))
            assert session.output.pendingSize + kept <= limits.sessionBuffer + EXCESS
            assert 0 <= session.stdin.size <= limits.sessionBuffer + limits.maxFrame
            held += session.output.pendingSize + kept + session.stdin.size
        assert registry.context.budget.used == held, (registry.context.budget.used, held)
        assert len(registry.vms) <= limits.maxVMs
        for vm in registry.vms.values():
            assert len(vm.processes.sessions) <= limits.maxTokens
            assert len(vm.commands.waiting) <= limits.maxCommands
        for client in registry.clients:
            assert len(client.slots) <= limits.maxUnanswered + 1
            assert client.outlet.size >= 0
            own = client.outlet.size - client.outlet.kept
            most = limits.clientBuffer + (limits.maxUnanswered + 1) * MOST_RESPONSE
            assert own <= most, f"{own} bytes of responses are kept"
        for guest in self.guests:
            guest.check(self.pure)
        for host in self.hosts:
            host.check()

    def end(self) -> None:
        """Everybody leaves, and the longest deadline passes: nothing is left."""
        for guest in self.guests:
            guest.connection.end()
        for host in self.hosts:
            host.control.end()
            host.io.end()
        registry, lost = self.registry, self.limits.lostTimeout
        for _ in range(MOST_STEPS):
            if not registry.clients:
                break
            # One after the other, each of the registrations that a client has sent fails.
            self.settle()
            self.wait(1)
        for seconds in (10, 60, lost, lost, lost):
            self.settle()
            self.wait(seconds)
            self.check()
        self.settle()
        left = [*registry.clients, *registry.vms, *registry.leaving, *registry.tokens]
        assert not left, f"left at the end: {left}"
        assert registry.context.budget.used == 0
        waits = self.world.clock.getDelayedCalls()
        assert not waits, f"still waits at the end: {waits}"
        lines = [guest.connection for guest in self.guests]
        lines += [line for host in self.hosts for line in (host.control, host.io)]
        assert all(line.closed for line in lines), "a connection is open at the end"


#: In an order that inputs rely on: add new ones at the end.
STEPS: list[Callable[[Play], None]] = [
    Play.clientSendsBytes,
    Play.clientCommands,
    Play.register,
    Play.connect,
    Play.connectFails,
    Play.attach,
    Play.unregister,
    Play.hyper,
    Play.start,
    Play.connectShim,
    Play.disconnectShim,
    Play.signal,
    Play.stdin,
    Play.clientReads,
    Play.clientLeaves,
    Play.agentSays,
    Play.agentAnswers,
    Play.agentTellsEnd,
    Play.agentSendsBytes,
    Play.output,
    Play.exit,
    Play.agentReads,
    Play.agentDrains,
    Play.channelEnds,
    Play.timePasses,
]


def play(data: bytes) -> None:
    """Do what the input says, one step after the other, and then let everything end."""
    run = Play(data)
    for _ in range(MOST_STEPS):
        if not run.input.more:
            break
        run.input.choice(STEPS)(run)
        run.settle()
        run.check()
    run.end()
