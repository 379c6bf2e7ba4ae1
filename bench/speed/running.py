"""
One run of the load generator, with somebody between the two ends that it plays.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from ccproxy.testing.daemon import Daemon, script

from .rows import KEPT, PROXY, RELAY, Row

#: Seconds until a run counts as stuck.
PATIENCE = 120
#: What socat reads at a time, in bytes: as much as the others.
SOCAT_BUFFER = 65536

#: Where the load generator and who is measured run: on two processors, as a VM and its proxy do; on
#: one, where no other one is woken and the work alone is counted; or where the system wants.
PLACES = APART, TOGETHER, ANYWHERE = ("apart", "together", "anywhere")


class Failed(Exception):
    """A run has not come to its end, or the load generator found something wrong."""


@attrs.define(eq=False)
class Bench:
    """
    Runs rows.

    @ivar programs: the folder of C{load} and C{relay}.
    @ivar folder: where sockets may be made.
    @ivar processors: one of L{PLACES}.
    """

    programs: Path
    folder: Path
    processors: str = APART
    _daemons: dict[str, Daemon] = attrs.field(factory=dict)
    _ours: set[int] = attrs.field(init=False)
    _theirs: set[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        all_ = sorted(os.sched_getaffinity(0))
        places = {APART: (all_[:1], all_[-1:]), TOGETHER: (all_[-1:],) * 2, ANYWHERE: (all_, all_)}
        self._ours, self._theirs = (set(place) for place in places[self.processors])
        os.sched_setaffinity(0, self._ours)

    def close(self) -> None:
        """Stop the daemons."""
        while self._daemons:
            _, daemon = self._daemons.popitem()
            daemon.clear()

    def run(self, row: Row, subject: str) -> dict[str, Any]:
        """
        Run a row once.

        @return: what the load generator has found.
        @raise Failed: it did not end well.
        """
        if row.scenario == "start":
            return self._start()
        if subject not in (PROXY, KEPT):
            return self._relayed(row, subject)
        if row.fresh:
            self.close()
        try:
            daemon = self._running(subject)
            pid = daemon.pid if subject == PROXY else daemon.child
            return self._load(row, pid, f"socket={daemon.path}")
        finally:
            if row.fresh:
                self.close()

    def _running(self, subject: str) -> Daemon:
        if subject not in self._daemons:
            daemon = _newDaemon(kept=subject == KEPT)
            with self._elsewhere():
                self._daemons[subject] = daemon.start()
        return self._daemons[subject]

    @contextmanager
    def _elsewhere(self) -> Iterator[None]:
        """What is started now runs where whoever is measured does."""
        os.sched_setaffinity(0, self._theirs)
        try:
            yield
        finally:
            os.sched_setaffinity(0, self._ours)

    def _start(self) -> dict[str, Any]:
        """Start a daemon; the processor time that it has used when it accepts."""
        daemon, began = _newDaemon(), time.monotonic()
        with self._elsewhere():
            daemon.spawn()
        try:
            while not daemon.isListening():
                if not daemon.isAlive() or time.monotonic() > began + PATIENCE:
                    raise Failed(f"the daemon does not start: {daemon.log()}")
                time.sleep(0.002)
            return {
                "cpu_us": processorTime(daemon.pid) * 1e6,
                "wall_us": (time.monotonic() - began) * 1e6,
            }
        finally:
            daemon.clear()

    def _relayed(self, row: Row, subject: str) -> dict[str, Any]:
        near, far = str(self.folder / "near"), str(self.folder / "far")
        words = [str(self.programs / "relay"), near, far]
        if subject != RELAY:
            ends = f"UNIX-LISTEN:{near}", f"UNIX-CONNECT:{far},retry=100,interval=0.05"
            words = [subject, f"-b{SOCAT_BUFFER}", *ends]
        with self._elsewhere():
            process = subprocess.Popen(words)
        try:
            return self._load(row, process.pid, f"near={near}", f"far={far}")
        finally:
            process.kill()
            process.wait()
            Path(near).unlink(missing_ok=True)

    def _load(self, row: Row, pid: int, *more: str) -> dict[str, Any]:
        options = [f"{key}={value}" for key, value in row.options.items()]
        words = [str(self.programs / "load"), row.scenario, *options, *more]
        words += [f"pid={pid}", f"directory={self.folder}"]
        # Its own group, since it has a child while something floods.
        process = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except BaseException as problem:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(problem, subprocess.TimeoutExpired):
                raise Failed(f"{row.name} has not ended within {PATIENCE} s") from None
            raise
        if process.returncode:
            raise Failed(f"{row.name}: {' '.join(words)} ended with {process.returncode}")
        found: dict[str, Any] = json.loads(output)
        return found


def _newDaemon(kept: bool = False) -> Daemon:
    command = [*script("cc-proxy"), "-socket-path", "{socket}"]
    if kept:
        command = [*script("ccproxyctl"), "supervise", "--", *command]
    # One that is installed has its modules compiled; it is not to find those of the sources.
    installed = Path(sys.executable).with_name("cc-proxy").exists()
    return Daemon(command=command, extra={"PYTHONPATH": ""} if installed else {})


def processorTime(pid: int) -> float:
    """The processor time that a process has used, in seconds, by its own clock."""
    # As clock_getcpuclockid makes it, which Python lacks.
    return time.clock_gettime(~pid << 3 | 2)
