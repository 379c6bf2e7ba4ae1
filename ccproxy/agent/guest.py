"""
The agent as the first process of a VM: C{/init} of the initramfs that
L{ccproxy.vm.image} builds.

It makes the guest ready, opens the two virtio-serial ports, and is the agent of dialect cc from
then on. A file C{/agent} in the initramfs takes its place once the guest is ready.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from .guestsystem import MS_NODEV, MS_NOEXEC, MS_NOSUID, loadModule, mount, powerOff

#: An agent to run instead of this one.
OTHER_AGENT = "/agent"
#: The kernel modules to load, in their order.
MODULES = "/lib/modules/load"
#: Seconds for the ports to appear.
PORT_TIMEOUT = 10.0
#: Seconds from the last answer to the end: what is in a port when the machine is switched off
#: may not reach the host.
FAREWELL = 0.2


def prepare() -> None:
    """
    Mount what everything needs, and load the kernel's modules.

    @raise OSError: the kernel lacks something without which nothing works.
    """
    plain = MS_NOSUID | MS_NOEXEC
    mount("proc", "/proc", "proc", plain | MS_NODEV)
    mount("sysfs", "/sys", "sysfs", plain | MS_NODEV)
    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID)
    os.makedirs("/dev/pts", exist_ok=True)
    mount("devpts", "/dev/pts", "devpts", plain, "newinstance,ptmxmode=0666,mode=620")
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for path in Path(MODULES).read_text().split():
        try:
            loadModule(path)
        except OSError as error:
            # It may be part of another kernel, which has what is in it built in.
            print(f"agent: {error}", flush=True)


def serve() -> None:
    """Be the agent, until the machine is switched off."""
    from twisted.internet.epollreactor import EPollReactor
    from twisted.logger import globalLogBeginner, textFileLogObserver

    from ..net.monotonic import useMonotonicTime
    from ..wire.codes import Dialect
    from .agent import Agent
    from .guestmachine import GuestMachine
    from .guestports import CONTROL, IO, VirtioPort, findPort
    from .protocols import ControlProtocol, IOProtocol
    from .reaping import beProcess1

    reactor: Any = EPollReactor()
    useMonotonicTime(reactor)
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)

    def end() -> None:
        reactor.callLater(FAREWELL, powerOff)

    machine = GuestMachine(reactor, end)
    agent = Agent(Dialect.CC, machine)
    agent.whenOff = end
    for name, protocol in ((CONTROL, ControlProtocol), (IO, IOProtocol)):
        VirtioPort(reactor, findPort(name, PORT_TIMEOUT), partial(protocol, agent))
    beProcess1(reactor.callFromThread)
    reactor.run(installSignalHandlers=False)


def main() -> None:
    """Everything; the machine is switched off when it cannot go on."""
    os.environ["HOME"] = "/"
    prepare()
    if os.path.exists(OTHER_AGENT):
        os.execv(OTHER_AGENT, [OTHER_AGENT])
    serve()


if __name__ == "__main__":
    main()
