"""
Tests for L{ccproxy.agent.payloads}: the data of commands as each dialect reads it.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ccproxy.agent.payloads import ExecCmd, NewContainer, StartPod, Variable, WinSize, read
from ccproxy.errors import BadPayload
from ccproxy.wire.codes import Dialect

CC, H0, H1 = Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1


class CCTests(SynchronousTestCase):
    """The cc agent, which is written in Go."""

    def test_absentIsZero(self) -> None:
        """What is absent has its zero value."""
        self.assertEqual(read(StartPod, b"{}", CC), StartPod())

    def test_nullIsAbsent(self) -> None:
        """null is allowed for anything, lists and objects included."""
        data = b'{"hostname": null, "dns": null, "interfaces": null}'
        self.assertEqual(read(StartPod, data, CC), StartPod())
        self.assertIsNone(read(ExecCmd, b'{"process": null}', CC).process)

    def test_letterCase(self) -> None:
        """Keys are matched in any letter case, in nested objects too."""
        got = read(ExecCmd, b'{"CONTAINER":"c","Process":{"ENVS":[{"Env":"A","VALUE":"b"}]}}', CC)
        self.assertEqual(got.container, "c")
        assert got.process is not None
        self.assertEqual(got.process.envs, [Variable("A", "b")])

    def test_unknownKeys(self) -> None:
        """Unknown keys are ignored, those of other dialects included, wherever they are."""
        data = b'{"ports":7,"process":{"strange":1,"args":["x"],"envs":[{"env":"A","odd":2}]}}'
        got = read(NewContainer, data, CC)
        assert got.process is not None
        self.assertEqual(got.process.args, ["x"])

    def test_wrongType(self) -> None:
        """A wrong type is an error that names the place."""
        error = self.assertRaises(BadPayload, read, StartPod, b'{"hostname": 1}', CC)
        self.assertIn("hostname", str(error))
        error = self.assertRaises(BadPayload, read, ExecCmd, b'{"process":{"args":[1]}}', CC)
        self.assertIn("process.args", str(error))

    def test_runtimeKeys(self) -> None:
        """What cc-runtime adds is known."""
        data = b"""{"id":"c","systemMountsInfo":{"bindMountDev":true,"devShmSize":65},
            "constraints":{"CPUQuota":0},"process":{"args":["x"],"noNewPrivileges":true,
            "capabilities":{"bounding":["CAP_KILL"],"ambient":null}}}"""
        got = read(NewContainer, data, CC)
        assert got.process is not None
        self.assertEqual(got.process.capabilities, {"bounding": ["CAP_KILL"], "ambient": None})


class HyperstartTests(SynchronousTestCase):
    """hyperstart."""

    def test_unknownKeyRefused(self) -> None:
        """In startpod, newcontainer and lists of objects an unknown key is an error."""
        for data in (b'{"odd":1}', b'{"interfaces":[{"odd":1}]}', b'{"routes":[{"odd":1}]}'):
            self.assertRaises(BadPayload, read, StartPod, data, H0)
        for data in (b'{"odd":1}', b'{"systemMountsInfo":{}}', b'{"constraints":{}}'):
            self.assertRaises(BadPayload, read, NewContainer, data, H1)
        data = b'{"process":{"envs":[{"env":"A","odd":1}]}}'
        self.assertRaises(BadPayload, read, ExecCmd, data, H1)

    def test_unknownKeyIgnored(self) -> None:
        """In other commands it is ignored."""
        self.assertEqual(read(WinSize, b'{"odd":1,"seq":3,"row":2}', H0).row, 2)

    def test_unknownKeyEndsProcess(self) -> None:
        """In C{process} it ends the reading silently; 0.x does not know C{id}."""
        data = b'{"process":{"stdio":3,"id":"x","args":["sh"]}}'
        old, new = read(ExecCmd, data, H0).process, read(ExecCmd, data, H1).process
        assert old is not None and new is not None
        self.assertEqual((old.stdio, old.id, old.args), (3, "", []))
        self.assertEqual((new.stdio, new.id, new.args), (3, "x", ["sh"]))

    def test_letterCase(self) -> None:
        """The letter case of keys counts."""
        self.assertRaises(BadPayload, read, StartPod, b'{"Hostname":"h"}', H1)

    def test_nullList(self) -> None:
        """null for a list is an error."""
        self.assertRaises(BadPayload, read, StartPod, b'{"dns":null}', H0)

    def test_onlyInOne(self) -> None:
        """What 1.x added is unknown to 0.x."""
        self.assertTrue(read(NewContainer, b'{"readOnly":true}', H1).readOnly)
        self.assertRaises(BadPayload, read, NewContainer, b'{"readOnly":true}', H0)
        read(StartPod, b'{"interfaces":[{"device":"eth0","mtu":9000}]}', H1)
        data = b'{"interfaces":[{"device":"eth0","mtu":9000}]}'
        self.assertRaises(BadPayload, read, StartPod, data, H0)


class GarbageTests(SynchronousTestCase):
    """What is no payload at all."""

    def test_garbage(self) -> None:
        """Every dialect refuses it, and nothing else happens."""
        deep = b'{"dns":' + b"[" * 100000
        for dialect in (CC, H0, H1):
            for data in (b"", b"{", b"null", b"[]", b'"x"', b"\xff", b'{"dns":"\xff"}', deep):
                self.assertRaises(BadPayload, read, StartPod, data, dialect)
