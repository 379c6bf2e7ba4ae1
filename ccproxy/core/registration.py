"""
The registration of a VM: from RegisterVM to its agent's READY, or to the answer that it has come
before (promise P20).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import attrs

from ..errors import DeadlineExceeded, InternalError, RegistryError, RequestError
from ..wire.codes import ControlCode
from ..wire.payloads import RegisterVM
from .agent import Agent
from .commands import PingCommand, Requester, Slot
from .context import Wait, cancel, isDue
from .ports import VMPort
from .processes import Processes
from .records import reference, saved, timer, transient
from .states import VMState


class Registrant(Requester, Protocol):
    """A client that VMs belong to, as they know it."""

    url: str

    @property
    def registering(self) -> object | None: ...
    @property
    def session(self) -> object | None: ...

    def registrationOver(self) -> None:
        """Register a VM no longer: what was held back is carried out."""

    def leaveVM(self) -> None:
        """Be attached to a VM no longer."""


class RegistrationVM(VMPort, Protocol):
    """A VM, as its registration knows it."""

    agent: Agent
    processes: Processes
    request: RegisterVM
    resync: bool
    state: VMState

    def ioResponse(self, tokens: Sequence[str]) -> bytes:
        """Return the payload of the response to RegisterVM."""

    def registered(self, slot: Slot | None, answer: bytes) -> None:
        """The agent is ready."""

    def notRegistered(self, error: RequestError) -> None:
        """Nothing of the VM remains."""


@attrs.define(eq=False)
class Registration:
    """
    The registration of one VM.

    @ivar slot: the place of the response to RegisterVM, until it is given.
    """

    _vm: RegistrationVM = transient()
    slot: Slot | None = reference("slots", None)
    _readyMayCome: bool = saved(True, init=False)
    _readyWait: Wait | None = timer("neverReady", key="neverReadyIn")
    _pingWait: Wait | None = timer("askPing", key="askPingIn")

    @property
    def client(self) -> Registrant | None:
        """The client that waits for the response."""
        return cast(Registrant, self.slot.client) if self.slot is not None else None

    def waitForReady(self, seconds: float) -> None:
        """READY has a deadline from now on."""
        self._readyWait = self._vm.context.later(seconds, self.neverReady)

    def waitToAsk(self, seconds: float) -> None:
        """Both channels are connected: if the agent is silent for so long, it is asked."""
        self._pingWait = self._vm.context.later(seconds, self.askPing)

    def cancelWaits(self) -> None:
        """Wait for nothing more."""
        cancel(self._readyWait)
        cancel(self._pingWait)

    def received(self, code: int, body: bytes) -> bool:
        """
        Look at a message on the control channel in the light of the registration.

        @return: whether it was dealt with.
        """
        vm = self._vm
        if code == ControlCode.READY and self._readyMayCome:
            self._readyMayCome = False
            if vm.state is VMState.WAITING:
                vm.resync = False
                self._ready()
            return True
        if vm.state is not VMState.WAITING or vm.agent.commands.inFlight is not None:
            return False
        if code == ControlCode.ERROR:
            text = body.rstrip(b"\0").decode("utf-8", "replace")
            self.fail(
                RegistryError(f"{vm.containerId}: the agent said ERROR instead of READY: {text}")
            )
        else:
            vm.log.info(
                "dropped a stale message of code {code} before READY",
                event="stale-answer",
                code=code,
                **vm.fields,
            )
        return True

    def askPing(self) -> None:
        """READY stays away: perhaps it came to another connection, long ago."""
        vm = self._vm
        if vm.state is VMState.WAITING:
            vm.log.info(
                "no READY yet: asking the agent with ping", event="ready-ping", **vm.fields
            )
            vm.agent.send(PingCommand())

    def readyIsPast(self) -> None:
        """
        The agent has answered C{ping} without READY: it may run processes of an earlier
        registration, whose numbers are not ours, and its I/O channel may begin inside a message.
        """
        if self._vm.state is VMState.WAITING:
            self._vm.processes.beginLate()
            self._ready()

    def _ready(self) -> None:
        vm, slot, answer = self._vm, self.slot, b""
        if slot is not None:
            # Take the steps that can fail before those that others see.
            try:
                with vm.processes.tokens(vm.request.numIOStreams or 0, slot) as tokens:
                    answer = vm.ioResponse(tokens)
            except Exception as error:
                if not isinstance(error, RequestError):
                    vm.context.failed()
                    error = InternalError()
                self.fail(error)
                return
        vm.registered(slot, answer)
        self.slot = None

    def neverReady(self) -> None:
        """READY has not come in time."""
        vm = self._vm
        self.fail(
            DeadlineExceeded(
                f"{vm.containerId}: no READY from the agent on {vm.request.ctlSerial}"
                f" within {vm.context.limits.readyTimeout:g} s"
            )
        )

    def fail(self, error: RequestError) -> None:
        """The VM cannot be registered: nothing of it remains, if it was not registered before."""
        state = self._vm.state
        answered = state is VMState.REGISTERED and self.slot is None
        if not answered and state in (VMState.CONNECTING, VMState.WAITING, VMState.REGISTERED):
            self._vm.notRegistered(error)

    def repair(self, channels: bool) -> None:
        """
        Finish what a turn has begun that was cut short: see L{ccproxy.core.context}.

        @param channels: whether both channels are open.
        """
        if self.slot is not None and self.slot.reply is not None:
            self.slot = None
        if self.slot is None:
            return
        state, client = self._vm.state, self.client
        goesOn = state is VMState.CONNECTING or (state is VMState.WAITING and channels)
        known = client is not None and client.registering is self._vm
        if not (goesOn and known and isDue(self._readyWait)):
            self.fail(InternalError())

    def answer(self, error: RequestError) -> None:
        """Tell the client that the VM is not registered."""
        slot, client, self.slot = self.slot, self.client, None
        if slot is not None and client is not None:
            client.registrationOver()
            slot.fail(error)
