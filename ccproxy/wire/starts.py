"""
The data of the two control commands that start a process: docs/protocol, "Starting a process".

What is absent stays absent: hyperstart refuses C{null} where it expects a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Union

import attrs
from msgspec import UNSET, UnsetType


@attrs.frozen
class Variable:
    """One variable of a process's environment."""

    env: str
    value: str


@attrs.frozen
class Process:
    """
    The C{process} of L{NewContainer} and L{ExecCommand}.

    @ivar args: the program and its arguments.
    @ivar terminal: whether its stdin, stdout and stderr are one pseudo-terminal.
    @ivar envs: its environment.
    @ivar workdir: the folder it starts in.
    """

    args: Sequence[str]
    terminal: bool = False
    envs: Union[Sequence[Variable], UnsetType] = UNSET
    workdir: Union[str, UnsetType] = UNSET

    @classmethod
    def make(
        cls,
        args: Sequence[str],
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        terminal: bool = False,
    ) -> Process:
        """
        @param env: the environment, by name.
        @param workdir: the folder it starts in, the agent's choice by default.
        """
        variables = [Variable(name, value) for name, value in (env or {}).items()]
        return cls(args, terminal, variables or UNSET, workdir or UNSET)


@attrs.frozen
class NewContainer:
    """
    The data of C{newcontainer}: a container and its first process.

    @ivar id: the container's name, new in its VM.
    @ivar image: the folder of the container in what the VM shares with its host.
    @ivar rootfs: the folder in C{image} that is the container's root.
    """

    id: str
    rootfs: str
    image: str
    process: Process


@attrs.frozen
class ExecCommand:
    """The data of C{execcmd}: one more process in a running container."""

    container: str
    process: Process
