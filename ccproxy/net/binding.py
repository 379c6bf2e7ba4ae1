"""
Listening sockets: one bound to a path of the file system, or one that systemd passes.

A path is taken as it should be: never for a moment more open than asked for, never away from a
living daemon, and never is something removed that is not ours.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress

import attrs

from ..errors import CCProxyError
from ..wire.codes import MAX_PATH

#: Connections that may wait until they are accepted.
BACKLOG = 512
#: The first descriptor that systemd passes.
FIRST_PASSED = 3
#: How long another daemon may hold the lock while it starts, in seconds.
LOCK_TIMEOUT = 5.0
_LOCK_INTERVAL = 0.05
#: The greatest number of a group: Linux has 32 bits for it, and takes the last one for none.
MAX_GROUP = (1 << 32) - 2
_CREDENTIALS = struct.Struct("3i")
# The socket module does not know it yet.
_SO_PEERPIDFD = 77


class CannotListen(CCProxyError):
    """The socket cannot be had; the text says why and what to do."""


def credentials(connected: socket.socket) -> str:
    """
    Who is at the other end of an AF_UNIX socket, as C{pid=17 uid=0}.

    That is who it was when it connected; for a connecting socket, who began to listen.
    """
    pid, uid, _ = _credentials(connected)
    return f"pid={pid} uid={uid}"


def peerUser(connected: socket.socket) -> int:
    """The user at the other end of an AF_UNIX socket, as of when it connected."""
    return _credentials(connected)[1]


def peerProcess(connected: socket.socket) -> int | None:
    """
    A pidfd of the process at the other end of an AF_UNIX socket, as of when that connected or began
    to listen, in whatever PID namespace it is; L{None} where the kernel (before 6.5) gives none.
    """
    try:
        return connected.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return None


def _credentials(connected: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = _CREDENTIALS.unpack(
        connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return pid, uid, gid


@attrs.define(eq=False)
class ListeningSocket:
    """
    A socket that listens.

    @ivar socket: the socket, non-blocking.
    @ivar path: its path, empty if it has none that can be shown.
    """

    socket: socket.socket
    path: str
    _inode: tuple[int, int] | None = None
    _madeDirectory: bool = False

    @property
    def made(self) -> tuple[int, int] | None:
        """What tells the file at its path from others, if we have made it."""
        return self._inode

    @property
    def isLost(self) -> bool:
        """True if the socket's file was removed, renamed or replaced, or is not ours."""
        return self._inode is None or socketFile(self.path) != self._inode

    def revoke(self) -> None:
        """
        End the socket in every process that has it: no client can connect to it any more. Those
        that have connected can still be accepted. The file stays where it is.
        """
        self.disown()
        self.socket.shutdown(socket.SHUT_RDWR)

    def disown(self) -> None:
        """Leave the file at its path to others."""
        self._inode = None

    def give(self, uid: int, gid: int) -> None:
        """
        Give the socket's file, and its directory if this process made that, to another user.

        @param uid: the user.
        @param gid: the group, or -1 to leave it as it is.
        @raise OSError: this user may not do so.
        """
        if self._inode is not None:
            os.chown(self.path, uid, gid)
        if self._madeDirectory:
            directory = os.path.dirname(self.path)
            # It keeps a group that was chosen for it.
            chosen = os.stat(directory).st_gid != os.getegid()
            os.chown(directory, uid, -1 if chosen else gid)

    def close(self) -> None:
        """Stop listening. The path is removed if we made it and it is still the same."""
        if self._inode is not None:
            # One that may not be removed, as a confined daemon's pod's, is as dead without it.
            with suppress(OSError):
                if _inode(self.path) == self._inode:
                    os.unlink(self.path)
            self._inode = None
        # Not before: a path that still leads to a living socket is nobody else's to replace.
        self.socket.close()


def bind(
    path: str,
    mode: int = 0o660,
    group: str | int | None = None,
    directoryGroup: str | int | None = None,
) -> ListeningSocket:
    """
    Listen on a path, replacing a socket there that nobody listens on any more.

    Its directory is made if it is not there, with mode 0750.

    @param mode: the socket's permissions.
    @param group: the group that the socket, and its directory if made here, is given to, by name
        or number.
    @param directoryGroup: another group for the directory.
    @raise CannotListen: it cannot be done.
    """
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > MAX_PATH:
        raise CannotListen(
            f"cannot listen on {path}: the path is longer than the {MAX_PATH} bytes "
            "that a socket's address has room for; choose a shorter one"
        )
    try:
        gid = -1 if group is None else groupNumber(group)
        above = gid if directoryGroup is None else groupNumber(directoryGroup)
    except KeyError:
        raise CannotListen(f"cannot listen on {path}: there is no group {group}") from None
    try:
        directory = os.path.dirname(path)
        made = not os.path.exists(directory) and _makeDirectory(directory, above)
        with _locked(directory, path):
            return _bind(path, mode, gid, made)
    except OSError as error:
        # A missing right to the folder is EACCES.
        given = group is not None and error.errno == errno.EPERM
        why = f"this user may not give it to group {group}" if given else error.strerror
        raise CannotListen(f"cannot listen on {path}: {why}") from error


def groupNumber(group: str | int) -> int:
    """
    The number of a group.

    @param group: its name or its number.
    @raise KeyError: there is no group of this name, or can be none of this number.
    """
    if isinstance(group, int) or group.isdecimal():
        if len(str(group)) > len(str(MAX_GROUP)) or int(group) > MAX_GROUP:
            raise KeyError(group)
        return int(group)
    return grp.getgrnam(group)[2]


def _makeDirectory(path: str, gid: int, mode: int = 0o750) -> bool:
    """Make a directory. Return whether it was this process that made it."""
    if not os.path.exists(os.path.dirname(path)):
        # Whatever the umask is, the way to the socket shall be open.
        _makeDirectory(os.path.dirname(path), -1, 0o755)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    try:
        os.chown(path, -1, gid)
        os.chmod(path, mode)
    except OSError:
        # The next start would take it for one that somebody has closed on purpose.
        os.rmdir(path)
        raise
    return True


@contextmanager
def _locked(directory: str, path: str) -> Iterator[None]:
    """
    Hold the lock of a directory, so that no two starting daemons judge and bind a path at once.

    The lock is on the directory's own descriptor: it leaves nothing behind.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CannotListen(
                        f"cannot listen on {path}: another process has held the lock of "
                        f"{directory} for {LOCK_TIMEOUT:g} s"
                    ) from None
                time.sleep(_LOCK_INTERVAL)
        yield
    finally:
        os.close(fd)


def _bind(path: str, mode: int, gid: int, madeDirectory: bool) -> ListeningSocket:
    if isStale(path):
        with suppress(FileNotFoundError):
            os.unlink(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        # The file takes its permissions from the socket: none, until the group is right.
        os.fchmod(listening.fileno(), 0)
        listening.bind(path)
        bound = ListeningSocket(listening, path, _inode(path), madeDirectory)
        try:
            os.chown(path, -1, gid)
            os.chmod(path, mode)
            listening.listen(BACKLOG)
        except BaseException:
            bound.close()
            raise
        return bound
    except BaseException:
        listening.close()
        raise


def isStale(path: str) -> bool:
    """
    Return whether the path has a socket without a listener.

    @raise CannotListen: the path is no socket, or another process listens on it.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise CannotListen(
                f"cannot listen on {path}: there is a file that is no socket; "
                "remove it or choose another path"
            )
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(path)
        if result == errno.EACCES:
            raise CannotListen(
                f"cannot listen on {path}: there is a socket that this user may not open; "
                "choose another path"
            )
        if result not in (errno.ENOENT, errno.ECONNREFUSED):
            who = f" ({credentials(probe)})" if result == 0 else f" ({os.strerror(result)})"
            raise CannotListen(
                f"cannot listen on {path}: another daemon{who} is listening there; "
                "stop it first or choose another path"
            )
    return result == errno.ECONNREFUSED


def socketFile(path: str) -> tuple[int, int] | None:
    """What tells the file of a socket from others, or L{None} where there is none."""
    try:
        return _inode(path)
    except OSError:
        return None


def _inode(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def isPassed(environment: Mapping[str, str]) -> bool:
    """Return whether systemd has passed a socket to this process."""
    mine = environment.get("LISTEN_PID") == str(os.getpid())
    return mine and environment.get("LISTEN_FDS", "") not in ("", "0")


def passedSocket(environment: MutableMapping[str, str]) -> ListeningSocket | None:
    """
    The socket that systemd has passed to this process, if it has.

    The variables that say so are removed: they are not for our children.

    @param environment: the process's environment.
    @raise CannotListen: more than one was passed, or one that cannot be used.
    """
    passed = isPassed(environment)
    environment.pop("LISTEN_PID", None)
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if not passed:
        return None
    if count != "1":
        raise CannotListen(f"expected one socket from systemd (LISTEN_FDS), got {count}")
    try:
        os.set_inheritable(FIRST_PASSED, False)
        made = socket.socket(fileno=FIRST_PASSED)
        listens = made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise CannotListen(
            f"descriptor {FIRST_PASSED}, passed by systemd, cannot be used: {error.strerror}"
        ) from error
    if made.family != socket.AF_UNIX or made.type != socket.SOCK_STREAM or not listens:
        made.detach()
        raise CannotListen(
            f"descriptor {FIRST_PASSED}, passed by systemd, is no listening UNIX stream socket: "
            "the unit needs ListenStream= with a path"
        )
    made.setblocking(False)
    name = made.getsockname()
    # Clients are told the path. One that is not absolute can only be meant from here.
    path = os.path.abspath(name) if isinstance(name, str) and name else ""
    return ListeningSocket(made, path)
