"""
Tests of the admin socket against its own description, by schemathesis: whatever is asked, what
comes back is what C{openapi.json} promises.
"""

from __future__ import annotations

import json
import socket
from importlib.resources import files
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from requests import Session
from requests.adapters import HTTPAdapter
from schemathesis import GenerationMode
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from ccproxy.testing.client import hyperPayload
from ccproxy.testing.daemon import Daemon
from ccproxy.wire.codes import Command, ControlCode

from ..adminhttp import Admin
from ..processes import DaemonTestCase

#: What would end the daemon, or has no end.
LEFT_OUT = ("/v1/stop", "/v1/restart", "/v1/events")


class _Connection(HTTPConnection):
    path: str

    def connect(self) -> None:
        """Open the UNIX socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self.path)


class _Adapter(HTTPAdapter):
    """Takes every URL to one UNIX socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._pool = HTTPConnectionPool("localhost")
        # A class of its own, since the pool makes its connections by itself.
        self._pool.ConnectionCls = type("Connection", (_Connection,), {"path": path})

    def get_connection_with_tls_context(self, *args: object, **options: object) -> Any:
        """The pool, whatever the URL is."""
        return self._pool


class DescriptionTests(DaemonTestCase):
    """
    Every answer is as described.
    """

    def setUp(self) -> None:
        """A daemon with something to show in every view."""
        self.daemon = self.cleared(Daemon.byTwistd("--pprof", "--orphan=report")).start()
        vm = self.vm(self.daemon, tokens=3)
        vm.start()
        vm.shim(1)
        vm.agent.answers[ControlCode.PING] = None
        vm.client.command(Command.HYPER, hyperPayload("ping"))
        self.session = Session()
        self.session.mount("http://", _Adapter(f"{self.daemon.path}.admin"))
        self.addCleanup(self.session.close)
        text = (files("ccproxy.admin") / "openapi.json").read_text()
        self.schema: Any = schemathesis.openapi.from_dict(json.loads(text))

    def check(self, mode: Any, examples: int) -> None:
        """
        Ask for everything in many ways.

        @param mode: whether what is asked is right or wrong.
        """
        operations = [result.ok() for result in self.schema.get_all_operations()]
        # What takes something away comes last.
        for operation in sorted(operations, key=lambda each: each.method == "delete"):
            if operation.path in LEFT_OUT:
                continue
            if mode is GenerationMode.NEGATIVE and not (
                operation.body or operation.path_parameters
            ):
                continue  # there is nothing to do wrong

            @settings(
                max_examples=examples,
                database=None,
                derandomize=True,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                if case.operation.path.endswith("/console"):
                    case.query.pop("follow", None)
                case.call_and_validate(base_url="http://localhost", session=self.session)

            ask()

    def test_right(self) -> None:
        """Right questions are answered as described."""
        self.check(GenerationMode.POSITIVE, 15)
        self.assertTrue(Admin(f"{self.daemon.path}.admin").get("/v1/vms"))

    def test_wrong(self) -> None:
        """Wrong ones are refused as described."""
        self.check(GenerationMode.NEGATIVE, 15)
