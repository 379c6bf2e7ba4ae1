"""
All fuzz targets, by name.
"""

from __future__ import annotations

from collections.abc import Callable

from . import decoders, lanes, peers
from .play import play

Target = Callable[[bytes], None]

#: The first one, which has by far the most to find out, is given most of the time.
TARGETS: dict[str, Target] = {
    "protocol": play,
    "lanes": lanes.lanes,
    "frames": decoders.frames,
    "control": decoders.control,
    "io": decoders.io,
    "payload": decoders.payload,
    "relocation": decoders.relocation,
    "translation": decoders.translation,
    "flags": decoders.flags,
    "logline": decoders.logline,
    "agent": peers.agent,
    "client": peers.client,
}
