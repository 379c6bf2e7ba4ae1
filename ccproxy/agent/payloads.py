"""
The data of control commands, read as each agent dialect reads it: docs/protocol, "Commands and
their data".

The cc agent matches keys in any letter case, takes null for absent and ignores what it does not
know. hyperstart refuses a key it does not know in some objects and ignores it in others, and of
C{process} it reads nothing that comes after such a key.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import attrs
import msgspec
from msgspec import Meta

from ..errors import BadPayload
from ..wire.codes import Dialect

CC, H0, H1 = Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1
#: A sequence number; one over 63 bits, which nobody uses, is refused.
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


def _field(*dialects: Dialect, default: Any = "", of: type | None = None) -> Any:
    """
    A field of a command's data.

    @param dialects: those that know it, all by default.
    @param default: its value where it is absent; a list or dict is not shared.
    @param of: the class of the object, or of the list's objects, that it holds.
    """
    metadata = {"of": of, "dialects": dialects or (CC, H0, H1)}
    if isinstance(default, (list, dict)):
        return attrs.field(factory=type(default), metadata=metadata)
    return attrs.field(default=default, metadata=metadata)


@attrs.frozen
class Variable:
    """A variable of a process's environment."""

    env: str = _field()
    value: str = _field()


@attrs.frozen
class Process:
    """
    The process that a newcontainer or an execcmd starts.

    @ivar id: its name within its container.
    @ivar terminal: whether it gets a pseudo-terminal instead of pipes.
    @ivar stdio: the sequence number of its standard input and output.
    @ivar stderr: that of its standard error, without a terminal.
    """

    id: str = _field(CC, H1)
    terminal: bool = _field(default=False)
    stdio: Number = _field(default=0)
    stderr: Number = _field(default=0)
    args: list[str] = _field(default=[])
    envs: list[Variable] = _field(default=[], of=Variable)
    workdir: str = _field()
    user: str = _field()
    group: str = _field()
    additionalGroups: list[str] = _field(default=[])
    noNewPrivileges: bool = _field(CC, default=False)
    capabilities: dict[str, list[str] | None] = _field(CC, default={})


@attrs.frozen
class Address:
    """An address of a network interface."""

    ipAddress: str = _field()
    netMask: str = _field()


@attrs.frozen
class NetworkInterface:
    """A network interface; the embedded agent leaves the machine's own alone."""

    newDeviceName: str = _field()
    ipAddresses: list[Address] = _field(CC, H1, default=[], of=Address)
    mtu: int = _field(CC, H1, default=0)
    macAddr: str = _field(CC)
    device: str = _field(H0, H1)
    ipAddress: str = _field(H0, H1)
    netMask: str = _field(H0, H1)


@attrs.frozen
class Route:
    """A network route; the embedded agent leaves the machine's own alone."""

    src: str = _field()
    dest: str = _field()
    gateway: str = _field()
    device: str = _field()


@attrs.frozen
class Mapping:
    """A file or folder of the share that the container sees."""

    source: str = _field()
    path: str = _field()
    absolutePath: bool = _field(CC, default=False)
    readOnly: bool = _field(default=False)
    dockerVolume: bool = _field(default=False)
    scsiAddr: str = _field(CC)


@attrs.frozen
class Volume:
    """A block device that the container sees."""

    device: str = _field()
    addr: str = _field()
    mount: str = _field()
    fstype: str = _field()
    readOnly: bool = _field(default=False)
    dockerVolume: bool = _field(default=False)


@attrs.frozen
class SystemMounts:
    """How the container's system folders are mounted."""

    bindMountDev: bool = _field(default=False)
    devShmSize: int = _field(default=0)


@attrs.frozen
class NewContainer:
    """
    Start a container by its first process.

    Of all that describes its file system, the embedded agent checks the form and uses nothing.
    """

    id: str = _field()
    rootfs: str = _field()
    image: str = _field()
    fstype: str = _field()
    process: Process | None = _field(default=None, of=Process)
    fsmap: list[Mapping] = _field(default=[], of=Mapping)
    scsiAddr: str = _field(CC)
    systemMountsInfo: SystemMounts | None = _field(CC, default=None, of=SystemMounts)
    constraints: Any = _field(CC, default=None)
    addr: str = _field(H0, H1)
    volumes: list[Volume] = _field(H0, H1, default=[], of=Volume)
    sysctl: dict[str, str] = _field(H0, H1, default={})
    initialize: bool = _field(H0, H1, default=False)
    ports: Any = _field(H0, H1, default=None)
    readOnly: bool = _field(H1, default=False)


@attrs.frozen
class StartPod:
    """Make the VM ready for containers."""

    hostname: str = _field()
    shareDir: str = _field()
    interfaces: list[NetworkInterface] = _field(default=[], of=NetworkInterface)
    dns: list[str] = _field(default=[])
    routes: list[Route] = _field(default=[], of=Route)
    containers: list[NewContainer] = _field(H0, H1, default=[], of=NewContainer)


@attrs.frozen
class SetupRoute:
    """Add routes."""

    routes: list[Route] = _field(default=[], of=Route)


@attrs.frozen
class ExecCmd:
    """Start one more process in a container."""

    container: str = _field()
    process: Process | None = _field(default=None, of=Process)


@attrs.frozen
class KillContainer:
    """Send a signal to a container's first process, or to all of them (cc)."""

    container: str = _field()
    signal: int = _field(default=0)
    allProcesses: bool = _field(CC, default=False)


@attrs.frozen
class SignalProcess:
    """Send a signal to one process of a container."""

    container: str = _field()
    process: str = _field()
    signal: int = _field(default=0)


@attrs.frozen
class WinSize:
    """Change the size of a process's terminal."""

    seq: Number = _field(CC, H0, default=0)
    container: str = _field(H1)
    process: str = _field(H1)
    row: int = _field(default=0)
    column: int = _field(default=0)


@attrs.frozen
class RemoveContainer:
    """Forget a container that has ended."""

    container: str = _field()


@attrs.frozen
class PsContainer:
    """List a container's processes."""

    container: str = _field()
    format: str = _field()
    psargs: list[str] = _field(default=[])


@attrs.frozen
class File:
    """A file of a container."""

    container: str = _field()
    file: str = _field()


#: Where hyperstart ignores a key that it does not know.
_IGNORING = (ExecCmd, KillContainer, SignalProcess, WinSize, RemoveContainer, File, SetupRoute)

T = TypeVar("T")


def _known(cls: type, value: Any, dialect: Dialect) -> Any:
    """What the dialect sees of an object, its keys spelled as C{cls} spells them."""
    if not isinstance(value, dict):
        return value
    cc = dialect is CC
    fields = {
        field.name.lower() if cc else field.name: field
        for field in attrs.fields(cls)
        if dialect in field.metadata["dialects"]
    }
    seen = {}
    for key, item in value.items():
        field = fields.get(key.lower() if cc else key)
        if field is None:
            if cc or cls in _IGNORING:
                continue
            if cls is Process:
                break
            raise BadPayload(f"unknown key {key[:64]!r} in {cls.__name__}")
        if item is None and cc:
            continue
        of = field.metadata["of"]
        if of is None:
            seen[field.name] = item
        elif isinstance(item, list):
            seen[field.name] = [_known(of, one, dialect) for one in item]
        else:
            seen[field.name] = _known(of, item, dialect)
    return seen


def read(cls: type[T], body: bytes, dialect: Dialect) -> T:
    """
    Read the data of a command.

    @param cls: what it should be.
    @param dialect: how it is read: cc, hyperstart0 or hyperstart1.
    @raise BadPayload: the dialect would not take it; the text names the field.
    """
    try:
        result = msgspec.convert(_known(cls, msgspec.json.decode(body), dialect), cls)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadPayload(f"malformed {cls.__name__}: {error}") from None
    except RecursionError:
        raise BadPayload(f"malformed {cls.__name__}: nested too deep") from None
    return result
