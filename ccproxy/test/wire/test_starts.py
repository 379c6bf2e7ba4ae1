"""
The data of the commands that start processes.
"""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.testing.strategies import texts
from ccproxy.wire.payloads import encode
from ccproxy.wire.starts import ExecCommand, NewContainer, Process


class StartsTests(SynchronousTestCase):
    """L{NewContainer}, L{ExecCommand} and their L{Process}."""

    def test_least(self) -> None:
        """What is absent stays absent: hyperstart refuses C{null} where it expects a list."""
        process = Process.make(["a", "b"])
        self.assertEqual(
            json.loads(encode(NewContainer("c", "rootfs", "image", process))),
            {
                "id": "c",
                "image": "image",
                "rootfs": "rootfs",
                "process": {"args": ["a", "b"], "terminal": False},
            },
        )

    def test_all(self) -> None:
        """Everything that can be said of a process."""
        process = Process.make(["a"], {"PATH": "/bin", "EMPTY": ""}, "/work", terminal=True)
        self.assertEqual(
            json.loads(encode(ExecCommand("c", process))),
            {
                "container": "c",
                "process": {
                    "args": ["a"],
                    "terminal": True,
                    "envs": [
                        {"env": "PATH", "value": "/bin"},
                        {"env": "EMPTY", "value": ""},
                    ],
                    "workdir": "/work",
                },
            },
        )

    @given(st.lists(texts, min_size=1, max_size=3), st.dictionaries(texts, texts, max_size=3))
    def test_texts(self, args: list[str], env: dict[str, str]) -> None:
        """Any text survives."""
        process = json.loads(encode(Process.make(args, env)))
        self.assertEqual(process["args"], args)
        self.assertEqual({v["env"]: v["value"] for v in process.get("envs", [])}, env)
