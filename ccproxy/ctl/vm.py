"""
C{ccproxyctl vm}: start, stop and list real VMs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from ..errors import CCProxyError
from ..net.client import ProxyClient
from ..shim.attending import NoProxy
from ..shim.local import reach
from ..vm import hypervisor, image
from ..vm.hypervisor import VM, Guest, VMError
from .arguments import addAddress, seconds, text, whole
from .output import OutputError, say, write
from .running import FAILURE, runReactor

#: Seconds for the proxy's answers; it waits for the agent's READY itself, and says so sooner.
REGISTER_TIMEOUT = 120.0
POD_TIMEOUT = 30.0
#: Seconds that a VM has to be off after its agent has been lost.
OFF_TIMEOUT = 5.0


def _start(options: argparse.Namespace) -> int:
    vm = VM(options.name)
    cache = image.cacheFolder()
    cache.mkdir(parents=True, exist_ok=True)
    guest = _guest(options, cache)
    return runReactor("vm", lambda reactor: _startWith(reactor, options.path, vm, guest, cache))


async def _startWith(reactor: Any, path: str, vm: VM, guest: Guest, cache: Path) -> int:
    # First of all, as a VM that nobody takes is no use.
    client: ProxyClient = await reach(reactor, path)
    try:
        _boot(vm, guest, cache)
        try:
            await _register(client, vm)
        except BaseException:
            vm.kill()
            vm.remove()
            raise
    finally:
        client.stopProducing()
    _say(f"registered with the proxy at {path}")
    return 0


def _boot(vm: VM, guest: Guest, cache: Path) -> None:
    """Start it, and say what comes of it."""
    tried = hypervisor.accelerators(cache)
    begun = time.monotonic()
    _say(f"starting the VM {vm.name}: {' or '.join(tried)}, {guest.memory} MiB")
    vm.start(guest, tried)
    accelerator = vm.about()["accelerator"]
    if accelerator != tried[0]:
        _say(f"{tried[0]} does not work here: it runs by {accelerator}")
        hypervisor.rememberSilence(cache)
    _say(f"its agent is there after {time.monotonic() - begun:.1f} s")


def _guest(options: argparse.Namespace, cache: Path) -> Guest:
    """
    What the command line asks for; what it does not is got or built.

    @raise CCProxyError: something is missing.
    """
    kernel = options.kernel or str(image.guestParts(cache) / "vmlinuz")
    initrd = options.initrd or str(image.buildInitrd(cache))
    for path in (kernel, initrd, options.share, options.agent):
        if path is not None and not os.access(path, os.R_OK):
            raise VMError(f"{path} cannot be read, or is not there")
    share = options.share or str(image.busyboxShare(cache))
    return Guest(
        kernel=os.path.abspath(kernel),
        initrd=os.path.abspath(initrd),
        agent=options.agent,
        share=os.path.abspath(share),
        writable=options.share is not None,
        memory=options.memory,
        append=options.append,
    )


async def _register(client: ProxyClient, vm: VM) -> None:
    """Register it, and start its pod."""
    await client.registerVM(vm.name, vm.control, vm.io, vm.console, timeout=REGISTER_TIMEOUT)
    pod = {"hostname": vm.name, "shareDir": hypervisor.SHARE}
    try:
        await client.hyper("startpod", pod, timeout=POD_TIMEOUT)
    except CCProxyError:
        await client.unregisterVM(vm.name, POD_TIMEOUT)
        raise


def _stop(options: argparse.Namespace) -> int:
    vm = VM(options.name)
    if not vm.folder.exists():
        names = ", ".join(one.name for one in hypervisor.allVMs()) or "none"
        raise VMError(f"there is no VM {vm.name!r}; ccproxyctl vm start has started: {names}")
    return runReactor("vm", lambda reactor: _end(reactor, options, vm))


async def _end(reactor: Any, options: argparse.Namespace, vm: VM) -> int:
    """Do as a runtime does: destroy the pod, unregister the VM, see it end."""

    async def ask(work: Callable[[ProxyClient], Deferred[Any]]) -> None:
        client: ProxyClient = await reach(reactor, options.path)
        try:
            await work(client)
        finally:
            client.stopProducing()

    def destroy(client: ProxyClient) -> Deferred[Any]:
        attached = client.attachVM(vm.name, timeout=options.timeout)
        return attached.addCallback(lambda _: client.hyper("destroypod", timeout=options.timeout))

    def unregister(client: ProxyClient) -> Deferred[Any]:
        return client.unregisterVM(vm.name, REGISTER_TIMEOUT)

    destroyed = vm.isRunning()
    if destroyed:
        try:
            await ask(destroy)
        except CCProxyError as error:
            # A VM may be off before its agent's answer has got out.
            if isinstance(error, NoProxy) or not vm.ended(OFF_TIMEOUT):
                destroyed = False
                _say(f"its pod does not end: {error}")
    if not destroyed:
        # Before it is unregistered, so that its shims are told.
        vm.kill()
    try:
        await ask(unregister)
    except CCProxyError as error:
        _say(f"it is not unregistered: {error}")
    if not vm.ended(hypervisor.STOP_TIMEOUT):
        _say("it does not end by itself, and is switched off")
        vm.kill()
    vm.remove()
    return 0


def _list(options: argparse.Namespace) -> int:
    found = [vm.about() for vm in hypervisor.allVMs()]
    if options.json:
        write(json.dumps(found, indent=2) + "\n")
        return 0
    lines = [f"{'NAME':<20} {'PID':>8} {'BY':<4} {'MEMORY':>9} {'AGE':>8}\n"]
    for vm in found:
        age = "-" if vm["age"] is None else f"{vm['age']:.0f} s"
        memory = f"{vm.get('memory', '-')} MiB"
        pid = vm["pid"] or ("elsewhere" if vm["running"] else "ended")
        by = vm.get("accelerator", "-")
        lines.append(f"{vm['name']:<20} {pid!s:>8} {by!s:<4} {memory:>9} {age:>8}\n")
    write("".join(lines))
    return 0


def _say(text: str) -> None:
    say(f"ccproxyctl vm: {text}")


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = argparse.ArgumentParser(
        prog="ccproxyctl vm",
        description="Start, stop and list real VMs, run by QEMU on this machine.",
        epilog="Exit status: 0; 125 for an error; 2 for a bad option.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    start = commands.add_parser(
        "start",
        help="start a VM, register it with a proxy, and start its pod",
        description="Start a VM, register it with a proxy, and start its pod. Unless they are "
        "given, the kernel comes from a Debian package, which is downloaded once, and the initrd "
        "is built with ccproxy's own agent in it.",
    )
    start.set_defaults(run=_start)
    start.add_argument(
        "name", type=text, metavar="NAME", help="the VM's name, also its containerId"
    )
    start.add_argument(
        "--memory",
        type=whole(16, 1 << 24),
        default=256,
        metavar="MIB",
        help="its memory (default: %(default)s)",
    )
    start.add_argument("--kernel", metavar="FILE", help="the kernel that it boots")
    start.add_argument(
        "--initrd", metavar="FILE", help="the initrd, with an agent like hyperstart in it"
    )
    start.add_argument(
        "--agent", metavar="FILE", help="an agent to run in our initrd instead of our own"
    )
    start.add_argument(
        "--share",
        metavar="DIR",
        help="a folder that the VM shares, with the containers' root file systems in it, and may "
        "write to (default: one with busybox/rootfs, which it may not)",
    )
    start.add_argument(
        "--append", default="", metavar="WORDS", help="more for the kernel's command line"
    )
    stop = commands.add_parser(
        "stop",
        help="end a VM",
        description="Destroy a VM's pod, unregister it, and end it.",
    )
    stop.set_defaults(run=_stop)
    stop.add_argument("name", type=text, metavar="NAME", help="the VM's name")
    stop.add_argument(
        "--timeout",
        type=seconds(0),
        default=hypervisor.STOP_TIMEOUT,
        metavar="SECONDS",
        help="for its pod to end (default: %(default)g); then it is switched off",
    )
    for command in (start, stop):
        addAddress(command)
    listing = commands.add_parser("list", help="list the VMs that were started here")
    listing.set_defaults(run=_list)
    listing.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{vm}.
    @return: the exit status.
    """
    options = makeParser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except OutputError:
        raise
    except CCProxyError as error:
        _say(str(error))
        return FAILURE
    return status
