"""
The pid file of C{twistd}.

C{twistd} refuses to start if the number in the file is that of any living process. ccproxy needs no
pid file, since its socket tells whether it is running; so no pid file may prevent its start.
"""

from __future__ import annotations

import os
import stat
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from twisted.logger import Logger

#: The name by default. C{twistd} writes this file into the current folder.
DEFAULT = "twistd.pid"

_log = Logger()


def settlePidFile(twistd: MutableMapping[str, Any]) -> None:
    """
    Make sure that the pid file does not prevent the start. Call this before C{twistd} checks it.

    Remove a file whose number is not that of another living C{twistd}. Do without a file if the
    number is, and in the foreground if none was asked for.

    @param twistd: the options of C{twistd} itself.
    """
    path = twistd.get("pidfile")
    if not path:
        return
    if path == DEFAULT and twistd.get("nodaemon"):
        twistd["pidfile"] = ""
        return
    try:
        content = Path(path).read_bytes() if stat.S_ISREG(os.lstat(path).st_mode) else None
    except OSError:
        return  # There is none, or twistd will say why it cannot be used.
    if content is None or (content.strip() and not content.strip().isdigit()):
        return  # The file is not a pid file. twistd refuses it.
    pid = int(content) if content.strip() else 0
    if _isTwistd(pid):
        _log.warn(
            "{path} names process {pid}, another twistd that runs: this daemon writes no pid file;"
            " give it one of its own with --pidfile",
            event="pid-file-taken",
            path=path,
            pid=pid,
        )
        twistd["pidfile"] = ""
    else:
        _log.info(
            "removing {path}, which a dead daemon has left", event="pid-file-stale", path=path
        )
        os.unlink(path)


def _isTwistd(pid: int) -> bool:
    """Return whether a process other than this one runs C{twistd}."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    # A script's name follows that of its interpreter and the interpreter's options.
    return pid != os.getpid() and b"twistd" in map(os.path.basename, words[:4])
