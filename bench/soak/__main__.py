"""
C{python -m bench.soak}: run it, and say what has happened.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater, react

from ccproxy.errors import ConnectionClosed, ProxyError
from ccproxy.net.client import ProxyClient, connectUNIX
from ccproxy.testing.daemon import Daemon

from .life import Life
from .real import Echo, RealLife
from .shims import PATIENCE
from .tally import Tally

MIB = 1 << 20
#: Seconds of the whole time for the VMs that have begun to end.
ENDING = 8
#: Seconds in which everything must be freed: output that nobody fetches is kept for 30.
FREEING = 45
#: The most that the daemon may have grown at the end, in bytes: what its allocator has not given
#: back and its garbage collector has not looked at. It is reached within a minute, and stays.
GROWTH = 64 * MIB
MOST_SHOWN = 20
#: How much of the log of a daemon that has died is shown, in characters.
MOST_LOG = 4000
_BAD_WORDS = (" error ", " critical ", "Traceback", "Unhandled")


class Soak:
    """
    One run.

    @ivar peak: the most resident memory that the daemon has had, in bytes.
    """

    def __init__(self, reactor: Any, options: argparse.Namespace, daemon: Daemon) -> None:
        self._reactor = reactor
        self._options = options
        self._daemon = daemon
        self._tally = Tally()
        self._names: list[str] = []
        self.peak = 0

    async def run(self) -> bool:
        """
        Run, and print what has happened.

        @return: whether all was as it must be.
        """
        daemon, options, tally = self._daemon, self._options, self._tally
        # What is loaded when it is first needed belongs to the start.
        await (await self._connect()).close()
        await deferLater(self._reactor, 0.5, lambda: None)
        descriptors = len(daemon.descriptors())
        memory, cpu, begun = daemon.memory(), daemon.cpuSeconds(), time.monotonic()
        watching = LoopingCall(self._watch)
        watching.start(1)
        with tempfile.TemporaryDirectory(prefix="soak") as folder:
            until = self._reactor.seconds() + max(1, options.time - ENDING)
            lives = [Deferred.fromCoroutine(life.go(until)) for life in self._lives(folder)]
            await gatherResults(lives)
        watching.stop()
        if not daemon.isAlive():
            print(f"VIOLATION: the daemon has died:\n{daemon.log()[-MOST_LOG:]}")
            return False
        seconds, used = time.monotonic() - begun, daemon.cpuSeconds() - cpu
        freed = await self._freed(descriptors)
        end = daemon.memory()
        if end - memory > GROWTH:
            tally.violations.append(f"{(end - memory) >> 20} MiB of memory are not given back")
        if daemon.stop() != 0:
            tally.violations.append("the daemon did not end with status 0")
        for line in daemon.log().splitlines():
            if any(word in line for word in _BAD_WORDS):
                tally.violations.append(f"the daemon's log: {line}")
        rows = [
            ("VMs", f"{tally.vms}, of which {tally.deaths} died"),
            ("registrations abandoned", tally.abandoned),
            ("processes", f"{tally.processes}, of which {tally.real} programs of this machine"),
            ("shims that came back", tally.reconnects),
            ("output", f"{tally.output / MIB:.1f} MiB"),
            ("stdin", f"{tally.stdin / MIB:.1f} MiB"),
            ("seconds", f"{seconds:.0f}, and {freed:.1f} until all was freed"),
            ("processor", f"{used:.0f} s, {100 * used / seconds:.0f} %"),
            ("memory", f"{memory / MIB:.1f} MiB, peak {self.peak / MIB:.1f}, end {end / MIB:.1f}"),
            ("violations", len(tally.violations)),
        ]
        for name, value in rows:
            print(f"{name:>24}  {value}")
        for violation in tally.violations[:MOST_SHOWN]:
            print(f"VIOLATION: {violation}")
        return not tally.violations

    def _lives(self, folder: str) -> Iterator[Life | RealLife]:
        options, chance = self._options, random.Random(self._options.seed)
        for nth in range(options.vms):
            kind = RealLife if nth < options.real else Life
            name = f"{kind.__name__.lower()}{nth}"
            self._names.append(name)
            seed = chance.getrandbits(20) << 12 | nth
            yield kind(self._reactor, self._daemon.path, folder, name, self._tally, seed)

    def _watch(self) -> None:
        if self._daemon.isAlive():
            self.peak = max(self.peak, self._daemon.memory())

    def _connect(self, output: object = None) -> Deferred[ProxyClient]:
        return connectUNIX(self._reactor, self._daemon.path, output, PATIENCE)

    async def _freed(self, descriptors: int) -> float:
        """
        See that nothing is left in the daemon.

        @return: how many seconds it took.
        """
        begun = time.monotonic()
        left = ["the daemon"]
        while left and time.monotonic() < begun + FREEING:
            await deferLater(self._reactor, 0.5, lambda: None)
            left = await self._left(descriptors)
        self._tally.violations += left
        return time.monotonic() - begun

    async def _left(self, descriptors: int) -> list[str]:
        """What is left, as far as it can be seen from outside."""
        left = []
        runtime = await self._connect()
        for name in self._names:
            try:
                await runtime.attachVM(name, 0, PATIENCE)
            except ProxyError:
                continue
            left.append(f"{name} is still known")
        tokens, self._tally.tokens = self._tally.tokens, []
        prober = await self._connect(Echo())
        for token in tokens:
            try:
                await prober.connectShim(token, PATIENCE)
            except ProxyError:
                continue
            except ConnectionClosed:
                # It is valid, and there was no more to say on it.
                pass
            await prober.close()
            prober = await self._connect(Echo())
            self._tally.tokens.append(token)
            left.append(f"a token is still valid: {token[:6]}")
        await prober.close()
        await runtime.close()
        # The daemon closes its end a little later than we do.
        await deferLater(self._reactor, 0.5, lambda: None)
        found = self._daemon.descriptors()
        if len(found) != descriptors:
            left.append(f"{len(found)} descriptors instead of {descriptors}: {found}")
        return left


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--time", type=float, default=1200, help="seconds (default: 1200)")
    parser.add_argument("--vms", type=int, default=200, help="VMs at a time (default: 200)")
    parser.add_argument("--real", type=int, default=3, help="how many of them run real programs")
    parser.add_argument("--seed", type=int, default=None, help="repeats the choices of a run")
    parser.add_argument("--log", metavar="FILE", help="keep the daemon's log, at level info")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.randrange(1 << 20)
    return options


def main() -> int:
    """
    Run the command.

    @return: the exit status.
    """
    options = _options()
    print(f"soak: {options.vms} VMs for {options.time:g} s, seed {options.seed}", flush=True)
    # Each VM has four descriptors here and two in the daemon, and each shim one in both.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    daemon = Daemon("-log", "info" if options.log else "warn")
    daemon.start()
    good: list[bool] = []

    def run(reactor: Any) -> Deferred[None]:
        running: Deferred[bool] = Deferred.fromCoroutine(Soak(reactor, options, daemon).run())
        return running.addCallback(good.append)

    try:
        react(run)
    except SystemExit as end:
        if options.log:
            Path(options.log).write_text(daemon.log())
        return 0 if not end.code and good == [True] else 1
    finally:
        daemon.clear()
    return 1


if __name__ == "__main__":
    sys.exit(main())
