"""
What the agent needs of the machine that it runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
from zope.interface import Attribute, Interface

from ..errors import CCProxyError


class StartError(CCProxyError):
    """
    A program cannot be started.

    @ivar status: the exit status that a shell would give it.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@attrs.frozen
class Volume:
    """
    A file or folder of the host's that a container sees.

    @ivar source: where it is in what the host shares.
    @ivar path: where the container sees it.
    """

    source: str
    path: str
    readOnly: bool = False


@attrs.frozen
class Root:
    """
    The file system of a container.

    @ivar image: its folder in what the host shares.
    @ivar rootfs: its root in there.
    @ivar volumes: what else it sees.
    """

    image: str
    rootfs: str
    volumes: Sequence[Volume] = ()


@attrs.frozen
class Program:
    """
    A program to start.

    @ivar args: its name and its arguments.
    @ivar environment: the variables asked for; the machine adds a few that every program needs.
    @ivar workdir: its working directory; empty for the machine's choice.
    @ivar terminal: whether it gets a pseudo-terminal instead of three pipes.
    @ivar container: the number of the container that it belongs to, 0 for none.
    @ivar root: the container's file system, where this is its first program.
    """

    args: Sequence[str]
    environment: Mapping[str, str] = attrs.field(factory=dict)
    workdir: str = ""
    terminal: bool = False
    container: int = 0
    root: Root | None = None


class IRunning(Interface):
    """A program that was started."""

    waiting: int = Attribute("How many bytes of standard input wait to be read by the program.")

    def write(data: bytes) -> None:
        """Take standard input; it goes out with the next L{flush}."""

    def flush() -> None:
        """
        Write what waits, as far as the program takes it.

        What it does not take is written later; once nothing waits any more
        L{IRunningSink.stdinDrained} is called.
        """

    def closeStdin() -> None:
        """End the standard input after what waits. A terminal has no such end."""

    def signal(number: int) -> None:
        """
        Send a signal to the program itself. SIGINT, SIGQUIT, SIGHUP and SIGPIPE, which are not
        meant for a single process, go to its whole process group.

        @raise OSError: there is no such signal, or the program has ended.
        """

    def resize(rows: int, columns: int) -> None:
        """Set the size of its terminal, in cells; its foreground group gets SIGWINCH."""

    def pauseOutput() -> None:
        """Read no output; a program that writes will block."""

    def resumeOutput() -> None:
        """Read output again."""


class IRunningSink(Interface):
    """Who hears of a running program. Nothing is called from within a call to L{IRunning}
    but L{stdinDrained}."""

    def output(stream: int, data: bytes) -> None:
        """It wrote. C{stream} is 1 for standard output and for a terminal, 2 for standard error."""

    def stdinDrained() -> None:
        """All its standard input has been written."""

    def ended(returncode: int) -> None:
        """
        It has ended and nobody holds its output any more.

        @param returncode: its exit status, or the negative number of the signal that killed it.
        """


class IMachine(Interface):
    """Where programs run."""

    def startPod(hostname: str, shareDir: str) -> None:
        """
        Make ready for containers.

        @param hostname: the pod's name.
        @param shareDir: what names the folder that the host shares.
        @raise OSError: that cannot be had.
        """

    def endPod() -> None:
        """The pod was destroyed, which the host is told at once."""

    def start(program: Program, sink: IRunningSink) -> IRunning:
        """
        Start a program.

        @raise StartError: it cannot be started.
        """

    def members(container: int | None) -> list[int]:
        """The pids of a container's processes, or of all; their children included."""

    def signal(container: int | None, number: int) -> None:
        """Send a signal to all L{members}."""

    def ps(args: Sequence[str], done: Callable[[bytes | None], None]) -> None:
        """
        Run C{ps}.

        @param done: called with its output, or C{None} if it failed or took too long.
        """

    def readFile(path: str) -> bytes:
        """
        @return: what is in a file.
        @raise OSError: it is none, or too long for a message, or cannot be read.
        """

    def writeFile(path: str, content: bytes) -> None:
        """
        Put something into a file, which is made if need be.

        @raise OSError: it cannot be written.
        """
