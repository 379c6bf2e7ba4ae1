"""
Relocation: writing a session's I/O sequence numbers into C{newcontainer} and C{execcmd}.

docs/protocol, "Relocation". All but the two numbers (and C{process.id} for hyperstart 1.x)
reaches the agent byte for byte as the client wrote it: the text is cut around them, never
decoded and encoded again.
"""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Annotated, Any, Optional

import attrs
from msgspec import Meta, Raw, UnsetType

from ..errors import BadPayload, RequestError
from .payloads import MAX_ID, decode

#: What hyperstart 0.x knows of C{process}; it reads nothing behind another key.
HYPERSTART0_KEYS = frozenset(
    ["terminal", "stdio", "stderr", "args", "envs", "workdir", "user", "group", "additionalGroups"]
)
_OURS = frozenset(("stdio", "stderr"))
_scanner = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)
_spaces = re.compile(r"[ \t\n\r]*")

#: A member of an object: its key, and where in the text the key begins, the value begins, and the
#: value ends.
_Member = tuple[str, int, int, int]


_Id = Optional[Annotated[str, Meta(max_length=MAX_ID)]]


@attrs.frozen
class _Process:
    args: Optional[list[str]] = None
    terminal: Optional[bool] = None
    id: _Id = None
    stdio: Optional[int] = None
    stderr: Optional[int] = None


@attrs.frozen
class _NewContainer:
    process: Optional[_Process] = None
    id: _Id = None


@attrs.frozen
class _ExecCmd:
    process: Optional[_Process] = None
    container: _Id = None


@attrs.frozen
class StartData:
    """
    The data of a C{newcontainer} or C{execcmd}, checked, and cut where the numbers go.

    @ivar container: the container that the process belongs to.
    @ivar process: the process's id, or L{None} where the client gave none.
    @ivar terminal: whether the process has a terminal, and so no stderr.
    """

    container: str
    process: str | None
    terminal: bool
    _head: str
    _members: str
    _tail: str
    _strangeKey: str | None

    @classmethod
    def parse(cls, hyperName: str, data: Raw | UnsetType) -> StartData:
        """
        @param hyperName: C{newcontainer} or C{execcmd}.
        @param data: what the client gave.
        @raise BadPayload: the agent would hang or crash on it, or the numbers cannot be put in.
        """
        if not isinstance(data, Raw):
            raise BadPayload(f"{hyperName} needs data")
        raw = bytes(data)
        container, process = _check(hyperName, raw)
        try:
            text = raw.decode()
            (place,) = _named(_members(text, _skip(text, 0)), "process", f"{hyperName} data")
            _, _, start, end = place
            members = _members(text, start)
        except (ValueError, RecursionError) as error:
            raise BadPayload(f"malformed {hyperName} data: {error}") from None
        for key in _OURS:
            _named(members, key, "process")
        dropped = _OURS if process.id else _OURS | {"id"}
        kept = [
            (key, text[keyStart:valueEnd])
            for key, keyStart, _, valueEnd in members
            if key not in dropped
        ]
        keys = [key for key, _ in kept]
        before = keys[: keys.index("args")] if "args" in keys else keys
        return cls(
            container=container or "",
            process=process.id or None,
            terminal=bool(process.terminal),
            head=text[:start],
            members="".join("," + member for _, member in kept),
            tail=text[end:],
            strangeKey=next((key for key in before if key not in HYPERSTART0_KEYS), None),
        )

    def parts(self) -> dict[str, Any]:
        """Return what another process can make the same data of."""
        return {name.lstrip("_"): part for name, part in attrs.asdict(self).items()}

    def checkHyperstart0(self) -> None:
        """
        @raise RequestError: hyperstart 0.x would not read the process's C{args}.
        """
        if self._strangeKey is not None:
            raise RequestError(
                f"hyperstart 0.x does not know process.{self._strangeKey[:64]}, and would read"
                " nothing behind it; args must come before it"
            )

    def render(self, stdio: int, stderr: int, process: str | None = None) -> bytes:
        """
        The data with its numbers.

        @param stdio: the sequence number of stdin and stdout.
        @param stderr: the sequence number of stderr; left out where there is a terminal.
        @param process: the process id to put in, if one shall be.
        """
        own = f'"stdio":{stdio}' if self.terminal else f'"stdio":{stdio},"stderr":{stderr}'
        if process is not None:
            own = f'"id":"{process}",{own}'
        return f"{self._head}{{{own}{self._members}}}{self._tail}".encode()


def _check(hyperName: str, raw: bytes) -> tuple[str | None, _Process]:
    """Check what must hold of the data's values; gives the container's id and the process."""
    process: _Process | None
    if hyperName == "newcontainer":
        new = decode(_NewContainer, raw, hyperName)
        container, process = new.id, new.process
    else:
        command = decode(_ExecCmd, raw, hyperName)
        container, process = command.container, command.process
    if process is None:
        raise BadPayload(f"{hyperName} needs a process")
    if hyperName == "newcontainer" and not process.args:
        raise BadPayload("newcontainer needs a process with args that are not empty")
    for key, value in (("stdio", process.stdio), ("stderr", process.stderr)):
        if value:
            raise BadPayload(f"process.{key} is filled in already ({value}), expected 0 or none")
    return container, process


def _members(text: str, start: int) -> list[_Member]:
    """
    The members of the object that begins at C{start}.
    """
    found = []
    at = _skip(text, start + 1)
    while text[at] != "}":
        key, end = scanstring(text, at + 1, False)
        value = _skip(text, _skip(text, end) + 1)
        _, end = _scanner.raw_decode(text, value)
        found.append((key, at, value, end))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _named(members: list[_Member], name: str, where: str) -> list[_Member]:
    """
    The members called C{name}.

    @raise BadPayload: there are two, or one is called so but for its letter case, which some agents
        take for the same.
    """
    found = [member for member in members if member[0].casefold() == name]
    for key, *_ in found:
        if key != name:
            raise BadPayload(f"{where} has {key!r}, which some agents take for {name!r}")
    if len(found) > 1:
        raise BadPayload(f"{where} has {name} twice")
    return found


def _skip(text: str, at: int) -> int:
    """Where the next character stands that is no white space."""
    if text[at] > " ":
        return at
    match = _spaces.match(text, at)
    assert match is not None
    return match.end()
