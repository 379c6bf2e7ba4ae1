"""
Orphans: VMs that nobody looks after any more.
"""

from __future__ import annotations

from twisted.application.service import Service
from twisted.logger import Logger

from ..core.context import Wait, cancel
from ..core.registry import Registry
from ..core.states import VMState
from ..core.vm import VM

#: In how many looks the time passes after which a VM is an orphan.
LOOKS = 10


class OrphanService(Service):
    """
    Reports each VM that is registered and had neither a client nor a connected shim for
    C{--orphan-after} seconds: its runtime has perhaps forgotten it.

    @ivar orphans: the serial numbers of those that were reported and are orphans still.
    """

    log = Logger()

    def __init__(self, registry: Registry, after: float) -> None:
        """
        @param after: seconds.
        """
        self._registry = registry
        self._after = after
        self._wait: Wait | None = None
        # The numbers of VMs that nobody looks after, and since when: seconds of the clock.
        self._alone: dict[int, float] = {}
        self.orphans: set[int] = set()

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._look()

    def stopService(self) -> None:
        """Look no more."""
        super().stopService()
        cancel(self._wait)

    def count(self) -> int:
        """Return how many VMs are orphans."""
        return len(self.orphans)

    def _look(self) -> None:
        self._wait = self._registry.context.clock.callLater(self._after / LOOKS, self._look)
        now = self._registry.context.clock.seconds()
        alone = {vm.serial: vm for vm in self._registry.vms.values() if isAlone(vm)}
        self._alone = {serial: self._alone.get(serial, now) for serial in alone}
        self.orphans &= alone.keys()
        for serial, since in self._alone.items():
            if now - since >= self._after and serial not in self.orphans:
                self.orphans.add(serial)
                self.log.warn(
                    "nobody looks after the VM: it has had neither a client nor a shim for"
                    " {seconds:.0f} s",
                    event="vm-orphaned",
                    seconds=now - since,
                    **alone[serial].fields,
                )


def isAlone(vm: VM) -> bool:
    """Whether C{vm} is registered, and has neither a client nor a connected shim."""
    return (
        vm.state is VMState.REGISTERED
        and not vm.clients
        and not any(session.shim is not None for session in vm.processes.sessions)
    )
