"""
What an operator can set, checked: the one thing that both command lines produce.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from ..core.limits import MAX_COUNT, MAX_SECONDS, Limits
from ..errors import CCProxyError
from ..net.address import DEFAULT_SOCKET, adminPath
from ..wire.codes import MAX_PATH, Dialect
from ..wire.text import checkUTF8

#: What can be done about the kernel's samepage merging: stop it, leave it alone, pace it.
KSM_MODES = ("off", "initial", "auto")

#: What can be done about VMs that nobody looks after: nothing, or say so.
ORPHANS = ("keep", "report")

LOG_FORMATS = ("text", "logfmt", "json")
#: Where the log can go.
LOG_SINKS = ("stderr", "syslog", "journal")

#: Log levels from the most to the least talkative, under every name that is accepted.
LOG_LEVELS = {
    "debug": "debug",
    "info": "info",
    "warn": "warn",
    "warning": "warn",
    "error": "error",
    "fatal": "error",
    "panic": "error",
}

#: The dialects that can be asked for: those that say all about an agent.
DIALECTS = tuple(dialect.value for dialect in Dialect if dialect.decided)

_OPTION_NAMES = {
    "embeddedVMs": "embedded-vm",
    "vmSocketDirs": "vm-socket-dir",
    "stalledDrop": "stalled-shim",
}


class BadSetting(CCProxyError):
    """
    A setting has a value that makes no sense.

    @ivar setting: the name of the field of L{Settings} or L{Limits}.
    @ivar problem: what is wrong with the value, and which would be right.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{optionName(setting)}: {problem}")
        self.setting = setting
        self.problem = problem


def optionName(setting: str) -> str:
    """The name of the option that sets it: C{max-vms} for C{maxVMs}."""
    return _OPTION_NAMES.get(setting) or re.sub("(?<=[a-z])(?=[A-Z])", "-", setting).lower()


def canonicalLevel(name: str) -> str:
    """
    A log level under its shortest name.

    @param name: any name of L{LOG_LEVELS}, in any letter case.
    @raise ValueError: there is no such level.
    """
    try:
        return LOG_LEVELS[name.lower()]
    except KeyError:
        raise ValueError(
            f"unknown log level {name!r}: it is one of {', '.join(LOG_LEVELS)}"
        ) from None


def _checked(check: Callable[[Any], None]) -> Any:
    """An attrs validator: the L{ValueError} of C{check} becomes a L{BadSetting}."""

    def validate(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        try:
            check(value)
        except ValueError as problem:
            raise BadSetting(attribute.name, str(problem)) from None

    return validate


def _absolute(path: str) -> str:
    if not path:
        raise BadSetting("socketPath", "the path is empty")
    return os.path.abspath(path)


def _absoluteIfAny(path: str | None) -> str | None:
    if path == "":
        raise BadSetting("adminSocket", "the path is empty")
    return None if path is None else os.path.abspath(path)


def _strings(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


def _level(name: str) -> str:
    try:
        return canonicalLevel(name)
    except ValueError as problem:
        raise BadSetting("logLevel", str(problem)) from None


def _checkSocketPath(path: str) -> None:
    length = len(os.fsencode(path))
    if length > MAX_PATH:
        raise ValueError(
            f"{path!r} has {length} bytes; the path of a socket has at most {MAX_PATH}"
        )
    if "\0" in path:
        raise ValueError(f"{path!r} holds a NUL byte")
    checkUTF8(path)  # clients are told the path


def _checkMode(mode: int) -> None:
    if not 0 <= mode <= 0o777:
        raise ValueError(f"{mode:o} is no file mode from 000 to 777 (octal)")


def _checkLogFormat(name: str) -> None:
    if name not in LOG_FORMATS:
        raise ValueError(f"unknown log format {name!r}: it is one of {', '.join(LOG_FORMATS)}")


def _words(text: str | Iterable[str]) -> tuple[str, ...]:
    """Names with commas between them, or each by itself."""
    return tuple(text.split(",") if isinstance(text, str) else text)


def _checkSinks(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in LOG_SINKS:
            raise ValueError(f"unknown place {name!r}: it is one of {', '.join(LOG_SINKS)}")
        if names.count(name) > 1:
            raise ValueError(f"{name} is given twice")


def _checkLogRate(rate: int) -> None:
    if type(rate) is not int or not 0 <= rate <= MAX_COUNT:
        raise ValueError(f"{rate!r} is no number of log entries")


def _checkKSM(mode: str) -> None:
    if mode not in KSM_MODES:
        raise ValueError(f"unknown mode {mode!r}: it is one of {', '.join(KSM_MODES)}")


def hostAndPort(address: str) -> tuple[str, int]:
    """
    The parts of a TCP address.

    @param address: C{HOST:PORT}, where an IPv6 host may stand in brackets, or is empty for all
        addresses of the machine.
    @raise ValueError: it is none.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise ValueError(f"{address!r} is no HOST:PORT, such as localhost:9091")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _checkAddress(address: str) -> None:
    hostAndPort(address)


def _checkSeconds(seconds: float) -> None:
    if not 0 < seconds <= MAX_SECONDS:
        raise ValueError(
            f"{seconds!r} is no time: it is more than 0 and at most {MAX_SECONDS:g} seconds"
        )


def _checkOrphan(choice: str) -> None:
    if choice not in ORPHANS:
        raise ValueError(f"unknown choice {choice!r}: it is one of {', '.join(ORPHANS)}")


def _checkVMNames(names: tuple[str, ...]) -> None:
    for name in names:
        if not name:
            raise ValueError("the name of a VM is empty")
        checkUTF8(name)
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is given twice; each VM has a name of its own")


def _checkDirectories(paths: tuple[str, ...]) -> None:
    for path in paths:
        if not os.path.isabs(path) or "\0" in path:
            raise ValueError(f"{path!r} is no absolute path of a directory")


def _checkDialect(dialect: Dialect | None) -> None:
    if dialect is not None and not dialect.decided:
        raise ValueError(f"{dialect.value!r} is no dialect to choose: {', '.join(DIALECTS)}")


def _checkLimits(limits: Limits) -> None:
    for field in attrs.fields(Limits):
        value = getattr(limits, field.name)
        least, most = field.metadata["least"], field.metadata["most"]
        if field.metadata["kind"] is int and type(value) is not int:
            raise BadSetting(field.name, f"{value!r} is no whole number")
        if value != value:
            raise BadSetting(field.name, f"{value!r} is no number")
        if value < least:
            raise BadSetting(field.name, f"{value} is less than {least:g}, the least that works")
        if value > most:
            raise BadSetting(field.name, f"it is more than {most:g}, the most that works")


@attrs.frozen(kw_only=True)
class Settings:
    """
    Everything that can be set, with the defaults of C{twistd ccproxy}.

    @raise BadSetting: from the constructor, if a value makes no sense.

    @ivar socketPath: where clients connect.
    @ivar socketMode: the file mode of that socket.
    @ivar socketGroup: the group of that socket, by name or number, or L{None} for the process's.
    @ivar limits: bounds and deadlines.
    @ivar logLevel: the least severe level that is logged, a value of L{LOG_LEVELS}.
    @ivar logFormat: one of L{LOG_FORMATS}.
    @ivar logTo: where the log goes, of L{LOG_SINKS}.
    @ivar logRate: how many entries of a kind are logged per second; 0 is any number.
    @ivar embeddedVMs: names of the VMs that the daemon itself plays.
    @ivar embeddedDialect: how their agents speak.
    @ivar vmSocketDirs: if not empty, the folders that hold all sockets of VMs.
    @ivar agentDialect: how all agents speak, or L{None} to find it out for each.
    @ivar ksm: one of L{KSM_MODES}; in pod mode KSM is left alone whatever it says.
    @ivar pod: whether the daemon serves one VM and ends after it.
    @ivar adminSocket: where the admin socket is, or L{None} for L{adminPath}'s choice.
    @ivar noAdmin: whether there is none.
    @ivar metricsAddress: a TCP address where metrics are served too, or L{None}.
    @ivar maxLoopLag: by how many seconds the loop may be late and the daemon be called healthy.
    @ivar orphan: one of L{ORPHANS}.
    @ivar orphanAfter: seconds after which a VM without client and shim is an orphan.
    @ivar pprof: whether profiles can be made.
    @ivar keepDescriptors: whether SIGTERM hands over to the next process.
    @ivar join: whether C{cc-proxy -uri} lets the daemon of the host serve its pod.
    @ivar overridden: the keys of the configuration file that have no effect, since options, flags
        or the environment say something else. It is no setting itself.
    """

    socketPath: str = attrs.field(
        default=DEFAULT_SOCKET, converter=_absolute, validator=_checked(_checkSocketPath)
    )
    socketMode: int = attrs.field(default=0o660, validator=_checked(_checkMode))
    socketGroup: str | None = None
    limits: Limits = attrs.field(factory=Limits, validator=_checked(_checkLimits))
    logLevel: str = attrs.field(default="info", converter=_level)
    logFormat: str = attrs.field(default="text", validator=_checked(_checkLogFormat))
    logTo: tuple[str, ...] = attrs.field(
        default=("stderr",), converter=_words, validator=_checked(_checkSinks)
    )
    logRate: int = attrs.field(default=1000, validator=_checked(_checkLogRate))
    embeddedVMs: tuple[str, ...] = attrs.field(
        default=(), converter=_strings, validator=_checked(_checkVMNames)
    )
    embeddedDialect: Dialect = attrs.field(default=Dialect.CC, validator=_checked(_checkDialect))
    vmSocketDirs: tuple[str, ...] = attrs.field(
        default=(), converter=_strings, validator=_checked(_checkDirectories)
    )
    agentDialect: Dialect | None = attrs.field(default=None, validator=_checked(_checkDialect))
    ksm: str = attrs.field(default="initial", validator=_checked(_checkKSM))
    pod: bool = False
    adminSocket: str | None = attrs.field(
        default=None,
        converter=_absoluteIfAny,
        validator=attrs.validators.optional(_checked(_checkSocketPath)),
    )
    noAdmin: bool = False
    metricsAddress: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(_checked(_checkAddress))
    )
    maxLoopLag: float = attrs.field(default=1.0, validator=_checked(_checkSeconds))
    orphan: str = attrs.field(default="keep", validator=_checked(_checkOrphan))
    orphanAfter: float = attrs.field(default=300.0, validator=_checked(_checkSeconds))
    pprof: bool = False
    keepDescriptors: bool = False
    join: bool = False
    overridden: tuple[str, ...] = attrs.field(default=(), eq=False)

    def __attrs_post_init__(self) -> None:
        """Check what belongs together."""
        if self.adminPath == self.socketPath:
            raise BadSetting("adminSocket", f"{self.socketPath} is the client socket already")

    @property
    def url(self) -> str:
        """
        The address of the client socket that is asked for. Where the daemon listens on a socket
        that was passed to it, its address is another one: the registry has it.
        """
        return f"unix://{self.socketPath}"

    @property
    def adminPath(self) -> str | None:
        """Where the admin socket is, if the daemon listens where it was asked to."""
        return self.adminPathBeside(self.socketPath)

    def adminPathBeside(self, path: str) -> str | None:
        """
        Where the admin socket is, or L{None} where there is none: in pod mode there is one only if
        it, or what needs it, is asked for.

        @param path: where the daemon listens for clients.
        """
        if self.noAdmin:
            return None
        if self.adminSocket is not None or (self.pod and not self.pprof):
            return self.adminSocket
        return adminPath(path)

    def differences(self, others: Settings | None = None) -> dict[str, str]:
        """
        What differs from other settings: texts by the names of options, for the log.

        @param others: those settings, by default the defaults.
        """
        others = Settings() if others is None else others
        return {
            **_differences(self, others, "limits"),
            **_differences(self.limits, others.limits),
        }


def settingsOf(values: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> Settings:
    """
    Make settings.

    @param values: what is not as by default, by the names of options.
    @param file: the same of the configuration file alone, over which others may have won.
    @raise BadSetting: a value makes no sense.
    """

    def having(fields: Iterable[attrs.Attribute[Any]]) -> dict[str, Any]:
        names = {field.name: optionName(field.name) for field in fields}
        return {name: values[option] for name, option in names.items() if option in values}

    limits = Limits(**having(attrs.fields(Limits)))
    overridden = tuple(name for name, value in (file or {}).items() if values[name] != value)
    return Settings(limits=limits, overridden=overridden, **having(attrs.fields(Settings)))


def _differences(these: Any, those: Any, without: str | None = None) -> dict[str, str]:
    found = {}
    for field in attrs.fields(type(these)):
        value = getattr(these, field.name)
        if field.eq and field.name != without and value != getattr(those, field.name):
            # Options without a value are numbers where the command line gave them.
            shown = bool(value) if isinstance(field.default, bool) else value
            found[optionName(field.name)] = _shown(field.name, shown)
    return found


def _shown(setting: str, value: Any) -> str:
    if isinstance(value, Dialect):
        return value.value
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if setting == "socketMode":
        return f"{value:04o}"
    if setting == "stalledDrop":
        return f"drop-after={value:g}" if value else "keep"
    return f"{value:g}" if isinstance(value, float) else str(value)
