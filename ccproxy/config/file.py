"""
The configuration file: TOML, whose keys are the options of C{twistd ccproxy} without their dashes.

Each key becomes the words that say the same on a command line, so that both are checked alike and
a new option is a key at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from typing import Any

from ..errors import CCProxyError

#: Read where no other file is named, if it is there.
DEFAULT_FILE = "/etc/ccproxy/ccproxy.toml"

#: What a host's file says of the host's one daemon: the daemons of pods, which read it too, would
#: get in its way with the same.
HOST_KEYS = (
    "admin-socket",
    "embedded-vm",
    "keep-descriptors",
    "ksm",
    "metrics-address",
    "socket-path",
)


class BadConfig(CCProxyError):
    """
    A configuration file cannot be used.

    @ivar path: which.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


def findConfig(path: str | None) -> str | None:
    """
    The file to read: the one that was named, or L{DEFAULT_FILE} where that is there.

    @param path: the one that was named.
    """
    return path or (DEFAULT_FILE if os.path.exists(DEFAULT_FILE) else None)


class KeyKind(Enum):
    """What a key takes."""

    VALUE = "a text or a number"
    FLAG = "true or false"
    LIST = "a list of texts"


def readConfig(path: str, kinds: Mapping[str, KeyKind]) -> dict[str, list[str]]:
    """
    Read a file.

    @param kinds: the keys that there are.
    @return: for each key of the file, the words that say the same on a command line.
    @raise BadConfig: it cannot be read, or has an unknown key or one with a wrong kind of value.
    """
    # Not before: many a daemon has no file to read.
    import tomllib

    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise BadConfig(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadConfig(path, f"is no TOML: {error}") from None
    for key in table:
        if key not in kinds:
            raise BadConfig(path, f"unknown key {key!r}{_guess(key, kinds)}")
    try:
        return {key: _words(key, kinds[key], value) for key, value in table.items()}
    except ValueError as problem:
        raise BadConfig(path, str(problem)) from None


def _guess(key: str, kinds: Mapping[str, KeyKind]) -> str:
    import difflib

    near = difflib.get_close_matches(key.replace("_", "-").lower(), kinds, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _words(key: str, kind: KeyKind, value: Any) -> list[str]:
    fits = {
        KeyKind.VALUE: isinstance(value, (str, int, float)) and not isinstance(value, bool),
        KeyKind.FLAG: isinstance(value, bool),
        KeyKind.LIST: isinstance(value, list) and all(isinstance(item, str) for item in value),
    }
    if not fits[kind]:
        raise ValueError(f"{key}: {_shown(value)} is not what it takes, {kind.value}")
    if kind is KeyKind.FLAG:
        return [f"--{key}"] if value else []
    if kind is KeyKind.LIST:
        return [f"--{key}={item}" for item in value]
    if key == "socket-mode" and isinstance(value, int):
        # 0o660 is the number 432 for TOML, and 432 is a mode too, of a socket open to everyone.
        raise ValueError(f'{key}: {value} is a number; write the mode in quotes, as in "0660"')
    return [f"--{key}={value}"]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "a table" if isinstance(value, dict) else repr(value)
