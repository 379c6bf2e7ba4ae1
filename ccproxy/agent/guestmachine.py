"""
The machine inside a VM: containers with a root folder and namespaces of their own.

The first process of a container is process 1 of a pid namespace and has a mount namespace, in
which its root is prepared; what is started in the container later joins both. When the first one
ends the kernel ends the others.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
from zope.interface import implementer

from .guestsystem import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    bind,
    join,
    mount,
    unshare,
)
from .interfaces import IMachine, IRunningSink, Program, Root, StartError
from .machine import Machine
from .programs import NOT_STARTED, RunningProgram

#: Where the folder that the host shares is mounted.
SHARE = "/run/share"
#: The device nodes of a container: their names, and their numbers.
_DEVICES = {
    "null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9),
    "tty": (5, 0),
}  # fmt: skip
_LINKS = {
    "ptmx": "pts/ptmx", "fd": "/proc/self/fd",
    "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2",
}  # fmt: skip


@attrs.define(eq=False)
class _Container:
    """
    A container that was started.

    @ivar path: its root, as the agent's own mount namespace has it.
    @ivar first: its first process.
    """

    path: str
    first: RunningProgram


@implementer(IMachine)
class GuestMachine(Machine):
    """Runs programs in containers, and those of no container beside itself."""

    def __init__(self, reactor: Any, powerOff: Callable[[], None]) -> None:
        """
        @param reactor: as of L{Machine}.
        @param powerOff: called when the pod has ended.
        """
        super().__init__(reactor)
        self._powerOff = powerOff
        self._containers: dict[int, _Container] = {}

    def startPod(self, hostname: str, shareDir: str) -> None:
        """Take the name, and mount what the host shares under the tag C{shareDir}."""
        if hostname:
            socket.sethostname(hostname)
        os.makedirs(SHARE, exist_ok=True)
        mount(shareDir, SHARE, "9p", options="trans=virtio,version=9p2000.L,msize=131072")

    def endPod(self) -> None:
        """The VM was for this pod alone."""
        self._powerOff()

    def start(self, program: Program, sink: IRunningSink) -> RunningProgram:
        """
        Start a program, in its container if it has one.

        @raise StartError: it cannot be started.
        """
        running = super().start(program, sink)
        if program.root is not None:
            self._containers[program.container] = _Container(rootPath(program.root), running)
        return running

    def place(self, program: Program) -> _Place | None:
        """New namespaces for the first program of a container, the same for all others of it."""
        if program.root is not None:
            return _Place(rootPath(program.root), root=program.root)
        container = self._containers.get(program.container)
        if container is None:
            return None
        if container.first.exited:
            raise StartError("the container's first process has ended", NOT_STARTED)
        return _Place(container.path, beside=container.first.pid)

    def ps(self, args: Sequence[str], done: Callable[[bytes | None], None]) -> None:
        """Run C{ps}: busybox's, which shows all by itself and does not know C{-ef}."""
        super().ps([] if list(args) == ["-ef"] else args, done)


def rootPath(root: Root) -> str:
    """
    The folder that a container shall have as its root.

    @raise StartError: there is none in the share.
    """
    path = os.path.normpath(os.path.join(SHARE, root.image.lstrip("/"), root.rootfs.lstrip("/")))
    if not f"{path}/".startswith(f"{SHARE}/") or not os.path.isdir(path):
        name = os.path.join(root.image, root.rootfs)
        raise StartError(f"no folder {name!r} in what the host shares", NOT_STARTED)
    return path


class _Place:
    """
    Namespaces to start one program in.

    As a context, around the fork, it makes the child go into the pid namespace; L{enter} is
    called in the child. A fork is needed for a pid namespace, and who calls C{unshare} or
    C{setns} stays where it is.
    """

    def __init__(self, path: str, root: Root | None = None, beside: int | None = None) -> None:
        """
        @param path: the container's root.
        @param root: what the root shall be made of, in new namespaces.
        @param beside: the pid of who is in the namespaces already, otherwise.
        """
        self._path = path
        self._root = root
        self._beside = beside

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """
        What is done around the fork.

        @raise OSError: the program's place could not be made, or entered.
        """
        with contextlib.ExitStack() as stack:
            self._report = os.memfd_create("report")
            stack.callback(os.close, self._report)
            home = _namespace(stack, "self", "pid")
            if self._beside is None:
                unshare(CLONE_NEWPID)
            else:
                self._mounts = _namespace(stack, str(self._beside), "mnt")
                join(_namespace(stack, str(self._beside), "pid"), CLONE_NEWPID)
            stack.callback(join, home, CLONE_NEWPID)
            try:
                yield
            except subprocess.SubprocessError:
                reason = os.pread(self._report, 1024, 0).decode(errors="ignore")
                raise OSError(0, reason or "its container could not be made") from None

    def enter(self, workdir: str) -> None:
        """What the child does before it becomes the program."""
        try:
            if self._root is None:
                join(self._mounts, CLONE_NEWNS)
            else:
                unshare(CLONE_NEWNS)
                prepareRoot(self._path, self._root)
            os.chroot(self._path)
            os.chdir(workdir)
        except OSError as error:
            os.write(self._report, str(error).encode(errors="replace"))
            raise


def _namespace(stack: contextlib.ExitStack, process: str, kind: str) -> int:
    fd = os.open(f"/proc/{process}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def prepareRoot(path: str, root: Root) -> None:
    """
    Mount into a root, in the namespaces of its first process, what programs need there.

    What the root has no folder for, and cannot be given one, is left out.
    """
    private = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if _folder(path, "proc"):
        mount("proc", f"{path}/proc", "proc", private)
    if _folder(path, "sys"):
        mount("sysfs", f"{path}/sys", "sysfs", private | MS_RDONLY)
    if _folder(path, "tmp"):
        mount("tmpfs", f"{path}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    if _folder(path, "dev"):
        mount("tmpfs", f"{path}/dev", "tmpfs", MS_NOSUID, "mode=755")
        for name, (major, minor) in _DEVICES.items():
            os.mknod(f"{path}/dev/{name}", stat.S_IFCHR, os.makedev(major, minor))
            os.chmod(f"{path}/dev/{name}", 0o666)
        for name, target in _LINKS.items():
            os.symlink(target, f"{path}/dev/{name}")
        for name in ("pts", "shm"):
            os.mkdir(f"{path}/dev/{name}")
        bind("/dev/pts", f"{path}/dev/pts")
        mount("tmpfs", f"{path}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    for volume in root.volumes:
        source = os.path.normpath(os.path.join(SHARE, volume.source.lstrip("/")))
        bind(source, os.path.join(path, volume.path.lstrip("/")), volume.readOnly)


def _folder(path: str, name: str) -> bool:
    with contextlib.suppress(OSError):
        os.mkdir(os.path.join(path, name))
    return os.path.isdir(os.path.join(path, name))
