"""
The ways of a keystroke, a byte of output and a command through the core are as docs/architecture
tells, and no longer.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

import ccproxy
from ccproxy import core
from ccproxy.wire.codes import Dialect, Stream

from ..memory import World

#: The most functions of the core that each way has.
MOST = {"A keystroke": 23, "A byte of output": 15, "A Hyper command and its answer": 51}


def trace(step: Callable[[], object]) -> list[str]:
    """Return the functions of the core that a step calls, in the order of their first calls."""
    found: dict[str, None] = {}
    folder = core.__path__[0]

    def called(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(folder) and code.co_name[0] != "<":
            name = code.co_qualname.replace("turn.<locals>.guarded", "turn")
            found[f"{Path(code.co_filename).stem}.{name}"] = None

    sys.setprofile(called)
    try:
        step()
    finally:
        sys.setprofile(None)
    return list(found)


class WayTests(SynchronousTestCase):
    """The three ways."""

    def setUp(self) -> None:
        world = World(Dialect.CC)
        world.registry.context.verbose = False
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])

        def command() -> None:
            runtime.hyper("ping")
            agent.ack()

        def type() -> None:
            shim.stream(Stream.STDIN, b"x")

        def write() -> None:
            agent.output(3, b"x")

        # Once before: the first time has more to do.
        for step in (command, type, write):
            step()
        agent.io.drain()
        self.ways = {
            "A keystroke": trace(type),
            "A byte of output": trace(write),
            "A Hyper command and its answer": trace(command),
        }

    def test_length(self) -> None:
        """No way becomes longer."""
        for way, functions in self.ways.items():
            self.assertLessEqual(len(functions), MOST[way], f"{way}: {functions}")

    def test_told(self) -> None:
        """The documentation names all functions of each way, and no others."""
        source = os.environ.get("CCPROXY_SOURCE") or Path(ccproxy.__file__).parent.parent
        page = Path(source) / "docs" / "architecture.rst"
        if not page.exists():
            raise SkipTest(f"there is no {page}; CCPROXY_SOURCE names the sources")
        text = page.read_text()
        for way, functions in self.ways.items():
            told = re.search(rf"{way}:\n\n((?:    .*\n)+)", text)
            assert told is not None, way
            self.assertEqual(re.findall(r"``([\w.]+)``", told[1]), functions)
