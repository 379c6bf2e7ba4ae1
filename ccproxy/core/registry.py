"""
The registry: which VMs, tokens and clients there are. It is the root of the core's state.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, cast

import attrs

from ..errors import InternalError, LimitReached, RegistryError, RequestError, UnknownVM
from ..interfaces import IConnector
from ..wire.codes import Dialect
from ..wire.payloads import IOResponse, RegisterVM, checkPath, encode
from .commands import Slot
from .context import Context, Receiver, run
from .outlet import Outlet
from .registration import Registrant
from .session import Session
from .states import ClientState, VMState
from .vm import VM, checkFree, vmOf


def randomToken() -> str:
    """32 random bytes in URL-safe base64: docs/protocol, "Tokens"."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def randomBase() -> int:
    """
    Return the base of the sequence numbers of a VM whose READY is past: a random even number from
    2^33 to 2^52.

    No clock and no counter decides, so an earlier registration of the VM almost certainly has other
    numbers. All numbers stay below 2^53, because they are JSON numbers.
    """
    return 2 * (2**32 + secrets.randbelow(2**51 - 2**32 + 1))


class KnownClient(Registrant, Receiver, Protocol):
    """A client, as the registry knows it."""

    outlet: Outlet
    slots: list[Slot]
    state: ClientState

    vm: VM | None

    @property
    def fields(self) -> dict[str, Any]: ...
    @property
    def registering(self) -> VM | None: ...
    @property
    def session(self) -> Session | None: ...

    def close(self) -> None:
        """Close its connection."""

    def repair(self) -> None:
        """Finish what a turn has begun that was cut short."""

    def wake(self) -> None:
        """Read on, if nothing prevents that any more."""


@attrs.define(eq=False, slots=False)
class Registry:
    """
    All that the proxy knows.

    @ivar context: time, limits, the log, the memory budget and the end of a turn.
    @ivar connector: connects the sockets of VMs.
    @ivar url: the URL of the client socket, which clients are told.
    @ivar agentDialect: the dialect of all agents, where it is configured.
    @ivar makeToken: makes a new token.
    @ivar makeBase: makes the base of the sequence numbers of a VM whose READY is past.
    @ivar vms: VMs by containerId, lost ones included, unregistered ones not.
    @ivar leaving: unregistered VMs that have an open channel.
    @ivar tokens: sessions by token.
    @ivar clients: all clients.
    @ivar ignoredFrames: how many frames of clients were dropped because they may not send them.
    @ivar draining: whether no new VM is registered.
    @ivar serial: the serial number of the last VM.
    @ivar clientCount: how many clients have connected so far.
    @ivar crashLoss: how many bytes of output and stdin crashes have cost all sessions.
    @ivar urls: of the sockets over which VMs have been registered; C{""} is the one of C{url}.
    @ivar whenRegistered: called when a VM has been registered.
    @ivar whenUnregistered: called when a VM has been unregistered.
    """

    context: Context
    connector: IConnector
    url: str = "unix:///var/run/clear-containers/proxy.sock"
    agentDialect: Dialect | None = None
    makeToken: Callable[[], str] = randomToken
    makeBase: Callable[[], int] = randomBase
    vms: dict[str, VM] = attrs.field(factory=dict)
    leaving: set[VM] = attrs.field(factory=set)
    tokens: dict[str, Session] = attrs.field(factory=dict)
    clients: set[KnownClient] = attrs.field(factory=set)
    ignoredFrames: int = 0
    draining: bool = False
    clientCount: int = 0
    crashLoss: tuple[int, int] = (0, 0)
    urls: set[str] = attrs.field(factory=set)
    whenRegistered: Callable[[], None] | None = None
    whenUnregistered: Callable[[], None] | None = None
    serial: int = 0

    def __attrs_post_init__(self) -> None:
        self.context.whenRoom = self._uncrowded
        self.context.repairs = self._repairs

    # -- clients

    @property
    def allVMs(self) -> set[VM]:
        """All VMs: known ones, those whose channels are open, and those that a token leads to."""
        byToken = map(vmOf, self.tokens.values())
        return {*self.vms.values(), *self.leaving, *byToken}

    @property
    def allSessions(self) -> set[Session]:
        """All sessions of L{allVMs}, and those that only a token leads to."""
        found = {*self.tokens.values()}
        return found.union(*(vm.processes.sessions for vm in self.allVMs))

    def recount(self) -> None:
        """Recount the bytes that all sessions hold: an exception may have prevented the count."""
        self.context.budget.used = sum(client.outlet.kept for client in self.clients)
        self.context.budget.used += sum(
            each.output.pendingSize + each.stdin.size for each in self.allSessions
        )

    def drain(self, draining: bool) -> None:
        """Register no new VMs from now on, or register them again."""
        self.draining = draining
        self.context.changed(self)
        self.context.flush()

    def frameIgnored(self) -> None:
        """Count a frame that its client may not send."""
        self.ignoredFrames += 1
        self.context.changed(self)

    def _uncrowded(self) -> None:
        """Each session may hold more again: those that were full are not."""
        for client in list(self.clients):
            client.wake()
        for vm in [*self.vms.values(), *self.leaving]:
            if vm.flow.blocker is not None:
                vm.flow.recheck(vm.flow.blocker)

    # -- VMs

    def find(self, containerId: str) -> VM:
        """
        The VM of that name, registered or lost.

        @raise UnknownVM: there is none.
        """
        vm = self.vms.get(containerId)
        if vm is None or vm.state in (VMState.CONNECTING, VMState.WAITING):
            raise UnknownVM(containerId)
        return vm

    def register(self, request: RegisterVM, slot: Slot) -> VM:
        """
        Take the name for a new VM, in place of a lost one.

        @param slot: what is answered when its agent is READY.
        @raise RequestError: the name is taken, the paths cannot be right, or there are too many.
        """
        if self.draining:
            raise RegistryError(
                f"{request.containerId}: the proxy is draining and takes no new VMs; use another,"
                " or end that with ccproxyctl drain --off"
            )
        paths = [request.ctlSerial, request.ioSerial]
        for field, path in (
            ("ctlSerial", request.ctlSerial),
            ("ioSerial", request.ioSerial),
            ("console", request.console),
        ):
            if field != "console" or path:
                checkPath(field, path or "")
        if request.console:
            paths.append(request.console)
        if len(set(paths)) < len(paths):
            raise RequestError(
                "malformed RegisterVM command: ctlSerial, ioSerial and console must be different"
                " sockets"
            )
        if (request.numIOStreams or 0) > self.context.limits.maxTokens:
            raise LimitReached(
                f"{request.containerId}: no more than {self.context.limits.maxTokens} I/O tokens;"
                " ask for fewer, or raise --max-tokens"
            )
        old = self.vms.get(request.containerId)
        checkFree(old, request.containerId)
        if old is not None:
            old.replace()
        self._makeRoom()
        self.serial += 1
        client = cast(Registrant, slot.client)
        vm = VM(self, request, self.serial, client.url)
        vm.registration.slot = slot
        self.vms[vm.containerId] = vm
        return vm

    def _makeRoom(self) -> None:
        """
        @raise LimitReached: there are too many VMs, none of them lost.
        """
        if len(self.vms) < self.context.limits.maxVMs:
            return
        lost = [vm for vm in self.vms.values() if vm.state is VMState.LOST]
        if not lost:
            raise LimitReached(
                f"no more than {self.context.limits.maxVMs} VMs at a time; unregister some, or"
                " raise --max-vms"
            )
        min(lost, key=lambda vm: vm.lostAt).unregister()

    def registered(self, vm: VM, slot: Slot, answer: bytes) -> None:
        """
        The agent of C{vm} is READY: its client is told.

        @param answer: the payload of the response.
        """
        client = cast(KnownClient, slot.client)
        client.registrationOver()
        self.attach(client, vm)
        self.urls.add(vm.url)
        slot.answer(answer)
        if self.whenRegistered is not None:
            self.whenRegistered()

    def ioResponse(self, client: Registrant, tokens: Sequence[str]) -> bytes:
        """The payload that tells C{client} where shims connect, and with which tokens."""
        return encode(IOResponse.make(client.url or self.url, list(tokens)))

    def attach(self, client: KnownClient, vm: VM) -> None:
        """The commands of C{client} go to C{vm} from now on."""
        if client.vm is not None:
            client.vm.clients.discard(client)
        client.vm = vm
        vm.clients.add(client)
        if self.context.verbose:
            log = self.context.log
            log.debug("client attached", event="attached", client=client.name, **vm.fields)

    def forget(self, vm: VM) -> None:
        """The name of C{vm} is free again."""
        if self.vms.get(vm.containerId) is vm:
            del self.vms[vm.containerId]
        if vm.control is not None or vm.io is not None:
            self.leaving.add(vm)

    def channelsClosed(self, vm: VM) -> None:
        """The channels of C{vm} are closed, and its sessions have been told."""
        self.leaving.discard(vm)
        self.context.tally.closed(vm)
        self.context.changed(vm)

    def forgetAll(self) -> None:
        """Drop a state that was restored by half, without any notice to peers."""
        for kept in (self.vms, self.leaving, self.tokens, self.clients):
            kept.clear()
        self.context.budget.used = 0

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way: no command unanswered, no byte undelivered."""
        return not any(client.slots or client.outlet.size for client in self.clients)

    def _repairs(self) -> Iterator[Callable[[], object]]:
        """Yield the steps of a repair: see L{ccproxy.core.context}."""
        for client in list(self.clients):
            yield client.repair
        vms, sessions = self.allVMs, self.allSessions
        for client in self.clients:  # what only a client still refers to
            vms.update(vm for vm in (client.vm, client.registering) if vm is not None)
            if client.session is not None:
                sessions.add(client.session)
                vms.add(vmOf(client.session))
        sessions.update(*(vm.processes.sessions for vm in vms))
        for vm in vms:
            yield vm.repair
        commands = {command for vm in vms for command in vm.unanswered}
        for session in sessions:
            yield partial(session.repair, commands)
        held: set[Slot | None] = {each.slot for session in sessions for each in session.held}
        held.update(vm.registration.slot for vm in vms)
        held.update(command.slot for command in commands)
        for client in list(self.clients):
            for slot in [each for each in client.slots if each.reply is None]:
                if slot not in held:
                    yield partial(slot.fail, InternalError())
            yield client.repair
        yield self.recount
        yield self.context.flush

    def shutDown(self) -> None:
        """Close everything; what was not delivered is lost."""
        for _ in range(2):  # the second time for what an exception has left
            for client in list(self.clients):
                run(self.context, client.close)
            for vm in [*self.vms.values(), *self.leaving]:
                run(self.context, vm.shutDown)
            for session in list(self.tokens.values()):
                run(self.context, session.end)
        self.vms.clear()
