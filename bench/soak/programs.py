"""
A machine for the embedded agent on which programs write and read records, without a process.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from ccproxy.agent.interfaces import IMachine, IRunning, IRunningSink, Program, StartError

from .records import HEADER, Check, record

#: Seconds between two turns of a program that writes.
TURN = 0.02


@attrs.define(eq=False)
class Task:
    """
    What one process does, and what has become of it.

    @ivar seed: tells its records from all others'; that of stderr is one more, of stdin two.
    @ivar outputs: how many records it writes to stdout and to stderr.
    @ivar recordSize: how long they are, or 0 for any length.
    @ivar perTurn: how many it writes at once.
    @ivar stdin: how many records it is sent; it waits for the end of them.
    @ivar status: with what it exits, or L{None} if it waits to be killed.
    @ivar slow: whether it takes its time to read stdin.
    @ivar written: how many records it has written to stdout and to stderr.
    @ivar input: what it has read.
    @ivar failed: called with what went wrong.
    """

    seed: int
    outputs: tuple[int, int]
    recordSize: int
    perTurn: int
    stdin: int
    status: int | None
    slow: bool
    longest: int
    failed: Callable[[Exception], None]
    written: list[int] = attrs.field(factory=lambda: [0, 0])
    input: Check = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.input = Check(f"stdin of process {self.seed}", self.seed + 2)


@implementer(IRunning)
class Running:
    """A program that does its task."""

    def __init__(self, clock: IReactorTime, task: Task, sink: IRunningSink) -> None:
        self.task = task
        self.waiting = 0
        self._clock = clock
        self._sink = sink
        self._buffer: list[bytes] = []
        self._inputEnded = False
        self._over = False
        self._flowing = True
        self._random = random.Random(task.seed)
        self._reading: Any = None
        self._turn = clock.callLater(0, self._write)

    # What the agent asks for.

    def write(self, data: bytes) -> None:
        self._buffer.append(data)
        self.waiting += len(data)

    def flush(self) -> None:
        if not self.task.slow:
            self._read()
        elif self._reading is None:
            self._reading = self._clock.callLater(0.2 * self._random.random(), self._read)

    def closeStdin(self) -> None:
        self._inputEnded = True

    def signal(self, number: int) -> None:
        if self._over:
            raise ProcessLookupError(3, "no such process")
        if number in (9, 15):
            self._clock.callLater(0, self._end, -number)

    def resize(self, rows: int, columns: int) -> None:
        """There is no terminal."""

    def pauseOutput(self) -> None:
        self._flowing = False

    def resumeOutput(self) -> None:
        self._flowing = True

    def stop(self) -> None:
        """The VM has ended: do nothing any more."""
        self._over = True
        for call in (self._turn, self._reading):
            if call is not None and call.active():
                call.cancel()

    # What it does.

    def _read(self) -> None:
        self._reading = None
        buffer, self._buffer, self.waiting = self._buffer, [], 0
        try:
            self.task.input.feed(b"".join(buffer))
        except Exception as problem:
            self.task.failed(problem)
        self._sink.stdinDrained()

    def _write(self) -> None:
        task = self.task
        for stream in (0, 1):
            left = task.outputs[stream] - task.written[stream]
            if left and self._flowing and not self._over:
                batch = b"".join(self._record(stream) for _ in range(min(left, task.perTurn)))
                self._sink.output(stream + 1, batch)
        ready = task.written == list(task.outputs) and task.status is not None
        if ready and (not task.stdin or (self._inputEnded and not self.waiting)):
            self._end(task.status or 0)
        elif not self._over:
            self._turn = self._clock.callLater(TURN, self._write)

    def _record(self, stream: int) -> bytes:
        task = self.task
        number = task.written[stream]
        task.written[stream] += 1
        size = task.recordSize or self._random.randint(HEADER.size, task.longest)
        return record(task.seed + stream, number, size)

    def _end(self, returncode: int) -> None:
        if not self._over:
            self.stop()
            self._sink.ended(returncode)


@implementer(IMachine)
class ScriptedMachine:
    """
    A machine that does the tasks it was given: the argument of a program is its task's seed.

    @ivar tasks: by their seeds.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.tasks: dict[int, Task] = {}
        self._clock = clock
        self._running: list[Running] = []

    def startPod(self, hostname: str, shareDir: str) -> None:
        pass

    def endPod(self) -> None:
        pass

    def start(self, program: Program, sink: IRunningSink) -> Running:
        task = self.tasks.get(int(program.args[1]))
        if task is None:
            raise StartError(f"there is no task {program.args[1]}", 127)
        self._running.append(Running(self._clock, task, sink))
        return self._running[-1]

    def stop(self) -> None:
        """Nothing runs any more."""
        for running in self._running:
            running.stop()

    def members(self, container: int | None) -> list[int]:
        return []

    def signal(self, container: int | None, number: int) -> None:
        """Nobody asks for it."""

    def ps(self, args: Sequence[str], done: Callable[[bytes | None], None]) -> None:
        done(b"")

    def readFile(self, path: str) -> bytes:
        raise FileNotFoundError(path)

    def writeFile(self, path: str, content: bytes) -> None:
        raise PermissionError(path)
