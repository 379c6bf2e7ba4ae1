"""
The seven commands of the client protocol: docs/protocol, "Commands".

Each takes the client, the place of its response and the payload; it answers at once, or hands
the place on to what will answer, or raises a L{RequestError} that becomes the response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Raw

from ..errors import InternalError, NotAttached, RegistryError, RequestError, VMGone
from ..interfaces import IConnection
from ..wire.codes import Command, ControlCode, Dialect, hyperCode
from ..wire.payloads import (
    AttachVM,
    ConnectShim,
    Hyper,
    RegisterVM,
    Signal,
    UnregisterVM,
    decode,
)
from ..wire.relocation import StartData
from .client import Client
from .commands import HyperCommand, Slot, StartCommand
from .registry import Registry
from .session import requireSession, unusable
from .states import VMState

_STARTS = (ControlCode.NEWCONTAINER, ControlCode.EXECCMD)


def registerVM(client: Client, slot: Slot, payload: bytes) -> None:
    """Make a VM known; answered when its agent is READY."""
    request = decode(RegisterVM, payload)
    vm = client.registering = client.registry.register(request, slot)
    try:
        vm.beginRegistration()
    except Exception:
        vm.failRegistration(InternalError())
        raise


def attachVM(client: Client, slot: Slot, payload: bytes) -> None:
    """Choose the VM for the commands that follow."""
    request = decode(AttachVM, payload)
    vm = client.registry.find(request.containerId)
    count = request.numIOStreams or 0
    if count and vm.state is VMState.LOST:
        raise VMGone(f"{vm.containerId}: VM is lost; unregister or replace it")
    with vm.processes.tokens(count, slot) as tokens:
        payload = client.registry.ioResponse(client, tokens)
        client.registry.attach(client, vm)
        slot.answer(payload)


def unregisterVM(client: Client, slot: Slot, payload: bytes) -> None:
    """Forget a VM."""
    request = decode(UnregisterVM, payload)
    client.registry.find(request.containerId).unregister(client)
    slot.answer()


def hyper(client: Client, slot: Slot, payload: bytes) -> None:
    """Forward a control command to the agent of the attached VM."""
    request = decode(Hyper, payload)
    vm, tokens = client.vm, request.tokens or []
    if vm is None:
        raise NotAttached()
    code = hyperCode(request.hyperName, vm.dialect)
    if code not in _STARTS and tokens:
        raise RequestError(
            f"{request.hyperName} doesn't need tokens but {len(tokens)} token(s) were given"
        )
    if len(tokens) > 1:
        raise RequestError(f"expected 0 or 1 token, got {len(tokens)}")
    if vm.state is VMState.LOST:
        raise VMGone(f"{vm.containerId}: VM is lost; unregister or replace it")
    if code not in _STARTS:
        body = bytes(request.data) if isinstance(request.data, Raw) else b""
        vm.send(HyperCommand(name=request.hyperName, slot=slot, body=body))
        return
    session = None
    if tokens:
        session = client.registry.tokens.get(tokens[0])
        if session is None or session.vm is not vm:
            raise RegistryError(f"unknown token {tokens[0][:64]}")
        problem = unusable(session)
        if problem is not None:
            raise problem
    data = StartData.parse(request.hyperName, request.data)
    if vm.dialect is Dialect.HYPERSTART0:
        data.checkHyperstart0()  # no shim need be waited for
    vm.starts.add(StartCommand(name=request.hyperName, slot=slot, data=data), session)


def connectShim(client: Client, slot: Slot, payload: bytes) -> None:
    """Become the shim of a token's process."""
    token = decode(ConnectShim, payload).token
    session = client.registry.tokens.get(token)
    if session is None:
        raise RegistryError(f"unknown token: {token[:64]}")
    if session.shim is not None and session.shim is not client:
        session.shim.pollHolder()
    if session.shim is not None:
        raise RegistryError(f"token already claimed: {token}")
    if client.wasShim:
        raise RegistryError("a connection can be the shim of one token only")
    if client.registry.tokens.get(token) is not session:
        raise RegistryError(f"unknown token: {token}")
    client.session, client.wasShim = session, True
    slot.answer()
    if client.session is session:  # it may have closed
        session.claim(client)


def disconnectShim(client: Client, slot: Slot, payload: bytes) -> None:
    """Give up the token; the connection is closed without a response."""
    session = requireSession(client.session)
    session.release()
    slot.settled()
    client.slots.remove(slot)
    client.finish()


def signal(client: Client, slot: Slot, payload: bytes) -> None:
    """Send a signal to the shim's process."""
    request = decode(Signal, payload)
    session = requireSession(client.session)
    request.check()
    session.signal(slot, request)


REQUESTS: Mapping[int, Callable[[Client, Slot, bytes], None]] = {
    Command.REGISTER_VM: registerVM,
    Command.ATTACH_VM: attachVM,
    Command.UNREGISTER_VM: unregisterVM,
    Command.HYPER: hyper,
    Command.CONNECT_SHIM: connectShim,
    Command.DISCONNECT_SHIM: disconnectShim,
    Command.SIGNAL: signal,
}


def perform(client: Client, slot: Slot, payload: bytes) -> None:
    """
    Carry out a command.

    @raise RequestError: it cannot be carried out.
    """
    REQUESTS[slot.opcode](client, slot, payload)


def connect(registry: Registry, connection: IConnection, url: str = "") -> Client:
    """
    A client has connected.

    @param url: the URL of the socket that it has connected to, if it is not the registry's.
    @return: takes what comes from it.
    """
    registry.clientCount += 1
    name = f"{registry.clientCount} {connection.peer}"
    context, limit = registry.context, registry.context.limits.maxClients
    excess = len(registry.clients) >= limit
    client = Client(registry, connection, name, perform, excess)
    client.url = url
    if excess:
        context.log.warn(
            "too many clients: no more than {limit} at a time",
            event="too-many-clients",
            limit=limit,
            client=name,
        )
    elif context.verbose:
        context.log.debug("client connected", event="client-connected", client=name)
    registry.clients.add(client)
    return client
