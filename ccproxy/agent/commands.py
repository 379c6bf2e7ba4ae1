"""
What each dialect answers to each command: docs/protocol, "Commands and their data".

A command is a function of the agent and the message's body. It returns the body of its ACK, or
C{None} if it answers by itself, later; it raises
L{RequestError<ccproxy.errors.RequestError>} for an ERROR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Optional

import msgspec

from ..errors import CCProxyError, RequestError
from ..wire.codes import HYPERSTART1_API, ControlCode, Dialect
from .interfaces import Root, StartError, Volume
from .payloads import (
    ExecCmd,
    File,
    KillContainer,
    NetworkInterface,
    NewContainer,
    PsContainer,
    RemoveContainer,
    SetupRoute,
    SignalProcess,
    StartPod,
    WinSize,
    read,
)
from .payloads import Process as ProcessData
from .pod import AgentPort, Container, Process

HYPERSTART0_API = 4242
MAX_SIGNAL = 64
#: The container of hyperstart 1.x whose processes run beside its init.
BESIDE_INIT = "hyperstart"

SIGTERM = 15


class Crash(CCProxyError):
    """The command makes the real agent die."""


Command = Callable[[AgentPort, bytes], Optional[bytes]]


def _nothing(agent: AgentPort, body: bytes) -> bytes:
    return b""


def _version(agent: AgentPort, body: bytes) -> bytes:
    old = agent.dialect is Dialect.HYPERSTART0
    return (HYPERSTART0_API if old else HYPERSTART1_API).to_bytes(4, "big")


def _container(agent: AgentPort, id: str) -> Container:
    container = agent.containers.get(id)
    if container is None:
        raise RequestError(f"no container {id[:64]!r}")
    return container


def _checked(data: ProcessData | None) -> ProcessData:
    if data is None or not data.args or not data.args[0]:
        raise RequestError("the process has no args")
    return data


def _start(agent: AgentPort, container: Container, data: ProcessData) -> Process:
    if not agent.cc and not data.terminal and not data.stderr:
        raise RequestError("a process without a terminal needs a stderr")
    process = Process(agent, container, data)
    try:
        agent.startProcess(process)
    except StartError as error:
        raise RequestError(str(error)) from None
    return process


# The pod


def _startpod(agent: AgentPort, body: bytes) -> bytes:
    try:
        data = read(StartPod, body, agent.dialect)
        if agent.podStarted:
            raise RequestError("the pod is already started")
        if agent.cc and not data.shareDir:
            raise RequestError("the pod has no shareDir")
        try:
            agent.machine.startPod(data.hostname, data.shareDir)
        except OSError as error:
            raise RequestError(f"cannot mount {data.shareDir[:64]!r}: {error}") from None
        agent.podStarted = True
        agent.containers.clear()
        for container in data.containers:
            _newContainer(agent, container)
    except RequestError:
        if not agent.cc:
            agent.afterAnswer.append(lambda: agent.fail("startpod failed"))
        raise
    return b""


def _destroypodCC(agent: AgentPort, body: bytes) -> bytes | None:
    def ended() -> None:
        agent.whenEnded = None
        agent.podStarted = False
        agent.containers.clear()
        agent.machine.endPod()

    def answer() -> None:
        ended()
        agent.acknowledge(b"")
        agent.control.resume("destroypod")

    if agent.anyProcess:
        agent.whenEnded = answer
        agent.control.pause("destroypod")
        return None
    ended()
    return b""


def _destroypodHyperstart(agent: AgentPort, body: bytes) -> None:
    def powerOff() -> None:
        agent.acknowledge(b"")
        agent.end()

    if agent.anyContainer:
        agent.whenEnded = powerOff
        agent.machine.signal(None, SIGTERM)
    else:
        agent.afterAnswer.append(powerOff)


# Containers and processes


def _newContainer(agent: AgentPort, data: NewContainer) -> None:
    process = _checked(data.process)
    if not agent.podStarted:
        raise RequestError("the pod is not started")
    if not data.id:
        raise RequestError("the container has no id")
    if data.id in agent.containers:
        raise RequestError(f"there is a container {data.id[:64]!r} already")
    container = agent.newContainer(data.id)
    volumes = [Volume(volume.source, volume.path, volume.readOnly) for volume in data.fsmap]
    container.root = Root(data.image, data.rootfs, tuple(volumes))
    container.first = _start(agent, container, process)
    agent.containers[data.id] = container


def _newcontainer(agent: AgentPort, body: bytes) -> bytes:
    _newContainer(agent, read(NewContainer, body, agent.dialect))
    return b""


def _execcmd(agent: AgentPort, body: bytes) -> bytes:
    data = read(ExecCmd, body, agent.dialect)
    process = _checked(data.process)
    _crashForIds(agent)
    if agent.dialect is Dialect.HYPERSTART1 and data.container == BESIDE_INIT:
        container = agent.besideInit
    else:
        container = _container(agent, data.container)
    if agent.cc and not container.running:
        raise RequestError(f"container {data.container[:64]!r} is not running")
    if agent.dialect is not Dialect.HYPERSTART0:
        id = process.id or (str(process.stdio) if agent.cc else "")
        if id and container.process(id) is not None:
            raise RequestError(f"there is a process {id[:64]!r} already")
    _start(agent, container, process)
    return b""


def _crashForIds(agent: AgentPort) -> None:
    """hyperstart 1.x compares the ids of its processes without a check for none."""
    if agent.strict and agent.dialect is Dialect.HYPERSTART1:
        for container in (agent.besideInit, *agent.containers.values()):
            if any(process.id is None for process in container.processes):
                raise Crash("a process was started without an id")


def _killcontainer(agent: AgentPort, body: bytes) -> bytes:
    data = read(KillContainer, body, agent.dialect)
    container = _container(agent, data.container)
    if agent.cc and not 0 <= data.signal <= MAX_SIGNAL:
        raise RequestError(f"unknown signal {data.signal}")
    if data.allProcesses:
        agent.machine.signal(container.number, data.signal)
        return b""
    try:
        _signal(container.first, data.signal)
    except RequestError:
        if agent.dialect is Dialect.HYPERSTART1:
            raise
    return b""


def _signal(process: Process | None, number: int) -> None:
    if process is None or process.running is None:
        raise RequestError("the process has ended")
    try:
        process.running.signal(number)
    except (OSError, OverflowError) as error:
        raise RequestError(f"cannot send signal {number}: {error}") from None


def _signalprocess(agent: AgentPort, body: bytes) -> bytes:
    data = read(SignalProcess, body, agent.dialect)
    if agent.strict and not data.process:
        raise Crash("signalprocess without a process")
    _signal(_processById(agent, data.container, data.process), data.signal)
    return b""


def _processById(agent: AgentPort, containerId: str, id: str) -> Process:
    _crashForIds(agent)
    beside = containerId == BESIDE_INIT
    container = agent.besideInit if beside else _container(agent, containerId)
    process = container.process(id)
    if process is None:
        raise RequestError(f"no process {id[:64]!r} in container {containerId[:64]!r}")
    return process


def _winsize(agent: AgentPort, body: bytes) -> bytes:
    data = read(WinSize, body, agent.dialect)
    if agent.cc and not (0 <= data.row <= 0xFFFF and 0 <= data.column <= 0xFFFF):
        raise RequestError("row and column have 16 bits")
    process: Process | None
    if agent.dialect is Dialect.HYPERSTART1:
        process = _processById(agent, data.container, data.process)
    else:
        process = agent.byNumber(data.seq)
        if process is None:
            return b""
    if process.terminal and process.running is not None:
        process.running.resize(data.row & 0xFFFF, data.column & 0xFFFF)
    elif agent.dialect is not Dialect.HYPERSTART0:
        raise RequestError("the process has no terminal")
    return b""


def _removecontainer(agent: AgentPort, body: bytes) -> bytes:
    data = read(RemoveContainer, body, agent.dialect)
    container = _container(agent, data.container)
    if container.running or (agent.cc and container.processes):
        raise RequestError(f"container {data.container[:64]!r} is running")
    del agent.containers[data.container]
    return b""


def _removecontainer1(agent: AgentPort, body: bytes) -> bytes:
    raise RequestError("hyperstart 1.x removes no container")


def _pscontainer(agent: AgentPort, body: bytes) -> bytes | None:
    data = read(PsContainer, body, agent.dialect)
    pids = agent.machine.members(_container(agent, data.container).number)
    if data.format == "json":
        return msgspec.json.encode(pids)
    if data.format != "table":
        raise RequestError(f"unknown format {data.format[:64]!r}")

    def done(output: bytes | None) -> None:
        try:
            agent.acknowledge(_table(output, pids))
        except RequestError as error:
            agent.refuse(ControlCode.PSCONTAINER, str(error))
        agent.control.resume("pscontainer")

    agent.control.pause("pscontainer")
    agent.machine.ps(data.psargs or ["-ef"], done)
    return None


def _table(output: bytes | None, pids: list[int]) -> bytes:
    """The lines of ps about some processes, and its heading."""
    if output is None:
        raise RequestError("ps failed")
    heading, *lines = output.splitlines(keepends=True) or [b""]
    titles = heading.split()
    if b"PID" not in titles:
        raise RequestError("ps gave no PID column")
    column = titles.index(b"PID")
    wanted = {str(pid).encode() for pid in pids}
    return heading + b"".join(
        line for line in lines if wanted & {*line.split()[column : column + 1]}
    )


# Files, and what the embedded agent only checks


def _readfile(agent: AgentPort, body: bytes) -> bytes:
    data = read(File, body, agent.dialect)
    _container(agent, data.container)
    try:
        return agent.machine.readFile(data.file)
    except (OSError, ValueError) as error:
        raise RequestError(str(error)) from None


def _writefile(agent: AgentPort, body: bytes) -> bytes:
    # The content follows the first brace that closes, whether or not the JSON ends there.
    end = body.find(b"}") + 1
    data = read(File, body[:end], agent.dialect)
    _container(agent, data.container)
    try:
        agent.machine.writeFile(data.file, body[end:])
    except (OSError, ValueError) as error:
        raise RequestError(str(error)) from None
    return b""


def _setupinterface(agent: AgentPort, body: bytes) -> bytes:
    read(NetworkInterface, body, agent.dialect)
    return b""


def _setuproute(agent: AgentPort, body: bytes) -> bytes:
    read(SetupRoute, body, agent.dialect)
    return b""


_common: dict[int, Command] = {
    ControlCode.STARTPOD: _startpod,
    ControlCode.EXECCMD: _execcmd,
    ControlCode.READY: _nothing,
    ControlCode.PING: _nothing,
    ControlCode.WINSIZE: _winsize,
    ControlCode.NEWCONTAINER: _newcontainer,
    ControlCode.KILLCONTAINER: _killcontainer,
    ControlCode.REMOVECONTAINER: _removecontainer,
}
_hyperstart: dict[int, Command] = {
    **_common,
    ControlCode.VERSION: _version,
    ControlCode.DESTROYPOD: _destroypodHyperstart,
    ControlCode.READFILE: _readfile,
    ControlCode.WRITEFILE: _writefile,
    ControlCode.ONLINECPUMEM: _nothing,
    ControlCode.SETUPINTERFACE: _setupinterface,
    ControlCode.SETUPROUTE: _setuproute,
}

#: The commands of each dialect by their codes; an agent answers any other with ERROR.
COMMANDS: Mapping[Dialect, Mapping[int, Command]] = {
    Dialect.CC: {
        **_common,
        ControlCode.DESTROYPOD: _destroypodCC,
        ControlCode.PSCONTAINER: _pscontainer,
    },
    Dialect.HYPERSTART0: _hyperstart,
    Dialect.HYPERSTART1: {
        **_hyperstart,
        ControlCode.REMOVECONTAINER: _removecontainer1,
        ControlCode.SIGNALPROCESS: _signalprocess,
        ControlCode.DELETEINTERFACE: _setupinterface,
    },
}
