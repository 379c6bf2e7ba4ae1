"""
What VMs' consoles have said, as it is written down for the next process at a planned restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from ..core.vm import VM

#: How many bytes of all consoles together go to the next process at a planned restart. For most
#: hosts that is all that is kept; for 2000 VMs it is 4 KiB of each, in which a guest says why it
#: ends, and not the 128 MB for which each of their containers would have to wait.
MOST_WRITTEN = 8 << 20


@attrs.frozen
class ConsoleForm:
    """
    What a VM's console has said, as it is written down.

    @ivar end: how many bytes in all.
    @ivar data: the last of them.
    """

    end: int = 0
    data: bytes = b""


def writeConsoles(vms: Iterable[VM]) -> dict[int, ConsoleForm]:
    """The last that the consoles have said, by the serials of their VMs: an equal share of each."""
    rings = {vm.serial: vm.console for vm in vms if vm.console.end}
    share = MOST_WRITTEN // max(1, len(rings))
    return {
        serial: ConsoleForm(ring.end, ring.since(ring.end - share))
        for serial, ring in rings.items()
    }


def resumeConsoles(vms: Iterable[VM], forms: Mapping[int, ConsoleForm]) -> None:
    """The opposite of L{writeConsoles}, before the consoles are read on."""
    for vm in vms:
        form = forms.get(vm.serial)
        if form is not None:
            vm.console.goOn(form.end, form.data)
