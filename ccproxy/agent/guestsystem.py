"""
What Linux offers to a guest's first process, and Python's C{os} does not: mounts, namespaces,
kernel modules, the power switch.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
CLONE_NEWNS, CLONE_NEWPID = 0x20000, 0x20000000

_LINUX_REBOOT_CMD_POWER_OFF = 0x4321FEDC
_SYS_FINIT_MODULE = {"x86_64": 313, "aarch64": 273}
_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: Callable[..., int], *arguments: Any, path: str | None = None) -> None:
    if function(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """
    Mount something.

    @param kind: the kind of file system.
    @param flags: of the C{MS_} flags.
    @raise OSError: it cannot be mounted; its file name is the target.
    """
    words = [os.fsencode(word) for word in (source, target, kind)]
    _call(_libc.mount, *words, ctypes.c_ulong(flags), os.fsencode(options), path=target)


def bind(source: str, target: str, readOnly: bool = False) -> None:
    """
    Let a file or folder be seen at another place too.

    @raise OSError: it cannot be.
    """
    mount(source, target, flags=MS_BIND | MS_REC)
    if readOnly:
        mount("", target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)


def unshare(kinds: int) -> None:
    """
    Leave namespaces for new ones; a new pid namespace is for the next child.

    @param kinds: of the C{CLONE_} flags.
    """
    _call(_libc.unshare, kinds)


def join(fd: int, kind: int) -> None:
    """
    Go into a namespace; into a pid namespace go the next children alone.

    @param fd: a descriptor of the namespace.
    """
    _call(_libc.setns, fd, kind)


def loadModule(path: str) -> None:
    """
    Load a kernel module.

    @raise OSError: the kernel does not take it.
    """
    number = _SYS_FINIT_MODULE[os.uname().machine]
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call(_libc.syscall, number, fd, b"", 0, path=path)
    finally:
        os.close(fd)


def powerOff() -> None:
    """Switch the machine off, at once."""
    os.sync()
    _call(_libc.reboot, ctypes.c_int(_LINUX_REBOOT_CMD_POWER_OFF))
