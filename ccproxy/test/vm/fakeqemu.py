"""
A program that stands for QEMU: it takes QEMU's command line, and is a VM that does what the words
on its kernel's command line say.

 - C{silent-kvm}: under KVM it prints nothing;
 - C{refused-kvm}: KVM cannot be opened;
 - C{panics}: it prints something, and ends;
 - C{deaf}: its agent opens no channel.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from contextlib import suppress

#: How long it lives at most, in seconds.
LIFE = 60.0


def _value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def _chardev(words: list[str], name: str) -> dict[str, str]:
    [chardev] = (word for word in words if word.startswith(f"socket,id={name},"))
    # A comma of a value is doubled.
    parts = [part.replace(",,", ",") for part in re.split("(?<!,),(?!,)", chardev)]
    return dict(part.split("=", 1) for part in parts[1:])


def _serve(listening: socket.socket, opened: bool) -> None:
    deadline = time.monotonic() + LIFE
    listening.settimeout(LIFE)
    while time.monotonic() < deadline:
        connection, _ = listening.accept()
        connection.settimeout(LIFE)
        # A peer that only checks for a listener reads nothing.
        with suppress(ConnectionError), connection, connection.makefile("rwb") as lines:
            lines.write(b'{"QMP": {"version": {}}}\n')
            lines.flush()
            for line in lines:
                answer: object = {}
                if json.loads(line)["execute"] == "query-chardev":
                    answer = [{"label": "control", "frontend-open": opened}]
                lines.write(b'{"event": "RTC_CHANGE"}\n')
                lines.write(json.dumps({"return": answer}).encode() + b"\n")
                lines.flush()


def main(words: list[str]) -> None:
    """Be QEMU."""
    accelerator = _value(words, "-accel")
    how = _value(words, "-append").split()
    if accelerator == "kvm" and "refused-kvm" in how:
        sys.exit("failed to initialize kvm: No such device")
    path = _chardev(words, "monitor")["path"]
    if os.path.exists(path):
        os.unlink(path)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    pid = os.fork()
    if pid:
        with open(_value(words, "-pidfile"), "w") as file:
            file.write(f"{pid}\n")
        return
    for fd in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    if accelerator != "kvm" or "silent-kvm" not in how:
        with open(_chardev(words, "console")["logfile"], "w") as file:
            file.write("Linux version 6.1\n")
    if "panics" not in how:
        _serve(listening, "deaf" not in how)


if __name__ == "__main__":
    main(sys.argv[1:])
