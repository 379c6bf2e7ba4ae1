"""
Archives of the kind that Linux unpacks as its first root file system: cpio, in the form "newc".

The same content gives the same bytes: no times, no users, no order but that of the names.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping

import attrs

_FIELDS = 13


@attrs.frozen
class Entry:
    """
    One file, folder or link of an archive.

    @ivar mode: its kind and permissions, as C{st_mode} has them.
    @ivar content: a file's content, or a link's target.
    """

    mode: int
    content: bytes = b""


def file(content: bytes, executable: bool = False) -> Entry:
    """A regular file."""
    return Entry(stat.S_IFREG | (0o755 if executable else 0o644), content)


def link(target: str) -> Entry:
    """A symbolic link."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def folder() -> Entry:
    """An empty folder."""
    return Entry(stat.S_IFDIR | 0o755)


def archive(entries: Mapping[str, Entry]) -> bytes:
    """
    An archive of all of these, and of the folders that they are in.

    @param entries: by their paths, without a slash at the beginning.
    """
    everything = dict(entries)
    for path in entries:
        while path := path.rpartition("/")[0]:
            everything.setdefault(path, folder())
    pieces = [
        _member(number, path, everything[path]) for number, path in enumerate(sorted(everything), 1)
    ]
    return b"".join(pieces) + _member(0, "TRAILER!!!", Entry(0))


def _member(number: int, path: str, entry: Entry) -> bytes:
    name = path.encode() + b"\0"
    fields = [0] * _FIELDS
    fields[0], fields[1], fields[4] = number, entry.mode, 1
    fields[6], fields[11] = len(entry.content), len(name)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
