"""
Tests of the admin socket of the real daemon.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
import unittest
from typing import Any
from urllib.request import urlopen

from ccproxy.testing.client import hyperPayload, registration
from ccproxy.testing.daemon import Daemon, eventually
from ccproxy.wire.codes import Command, ControlCode, Stream

from ..adminhttp import Admin, Following
from ..processes import DaemonTestCase, ProcessTestCase


class AdminTests(ProcessTestCase):
    """
    What the admin socket shows, and does.
    """

    def setUp(self) -> None:
        super().setUp()
        self.admin = Admin(f"{self.daemon.path}.admin")
        self.addCleanup(self.admin.ask, "PUT", "/v1/loglevel", {"level": "debug"})
        self.addCleanup(self.admin.ask, "POST", "/v1/drain", {"draining": False})

    def followed(self, url: str) -> Following:
        """An answer without an end."""
        following = self.admin.follow(url)
        self.addCleanup(following.close)
        return following

    def refused(self, status: int, method: str, url: str, body: Any = None) -> str:
        """What is said when something is refused."""
        answer = self.admin.ask(method, url, body)
        self.assertEqual((answer.status, sorted(answer.json)), (status, ["error"]), answer)
        text: str = answer.json["error"]
        return text

    def find(self, url: str, **wanted: Any) -> Any:
        """The one of a list that has these members."""
        (found,) = (
            view
            for view in self.admin.get(url)
            if all(view[name] == value for name, value in wanted.items())
        )
        return found

    def test_views(self) -> None:
        """A VM, its process, its shim and what waits are shown as they are."""
        process = self.vm(2).start()
        vm = process.vm
        process.say(b"x" * 100)
        process.shim.output(Stream.STDOUT, 100)
        vm.agent.answers[ControlCode.PING] = None
        vm.client.command(Command.HYPER, hyperPayload("ping"))
        serial = self.find("/v1/vms", containerId=vm.id)["serial"]
        eventually(lambda: self.admin.get(f"/v1/vms/{serial}")["commands"], "the ping")
        shown = self.admin.get(f"/v1/vms/{serial}")
        self.assertEqual(shown["state"], "registered")
        self.assertEqual((shown["clients"], shown["shims"], shown["sessions"]), (1, 1, 2))
        self.assertEqual((shown["outFrames"], shown["outBytes"]), (1, 112))
        self.assertEqual(shown["ctlSerial"], vm.agent.control.path)
        sessions = self.admin.get(f"/v1/sessions?vm={vm.id}")
        self.assertEqual([view["state"] for view in sessions], ["running", "created"])
        self.assertEqual((sessions[0]["container"], sessions[0]["first"]), ("container0", True))
        shim = self.find("/v1/clients", number=sessions[0]["shim"])
        self.assertEqual((shim["vm"], shim["session"]), (vm.id, sessions[0]["session"]))
        self.assertIn(f"pid={os.getpid()} uid={os.getuid()}", shim["peer"])
        waiting = self.find("/v1/commands", serial=serial)
        self.assertEqual((waiting["command"], waiting["awaits"]), ("ping", "answer"))
        dump = self.admin.get("/v1/dump")
        self.assertEqual(dump["limits"], self.admin.get("/v1/limits"))
        self.assertEqual(dump["status"]["pid"], self.daemon.pid)
        self.assertIn(serial, [view["serial"] for view in dump["vms"]])

    def test_many(self) -> None:
        """Long lists are whole, though they come little by little."""
        vm = self.vm(1000)
        shown = [view["stdio"] for view in self.admin.get(f"/v1/sessions?vm={vm.id}")]
        self.assertEqual(shown, list(range(3, 2003, 2)))
        dump = self.admin.get("/v1/dump")
        self.assertEqual(len([view for view in dump["sessions"] if view["vm"] == vm.id]), 1000)

    def test_noTokens(self) -> None:
        """No token is shown whole."""
        vm = self.vm(1)
        self.assertNotIn(vm.tokens[0], self.admin.ask("GET", "/v1/dump").body.decode())

    def test_drop(self) -> None:
        """A client can be dropped; the token of a shim can be claimed again."""
        process = self.process()
        number = self.find(f"/v1/sessions?vm={process.vm.id}")["shim"]
        dropped = self.admin.ask("DELETE", f"/v1/clients/{number}")
        self.assertEqual((dropped.status, dropped.json["number"]), (200, number))
        process.shim.waitClosed()
        self.refused(404, "DELETE", f"/v1/clients/{number}")
        process.say(b"again")
        self.assertEqual(self.shim(process.token).output(Stream.STDOUT, 5), b"again")

    def test_forget(self) -> None:
        """A lost VM can be forgotten; a registered one cannot."""
        vm = self.vm()
        serial = self.find("/v1/vms", containerId=vm.id)["serial"]
        self.assertIn("UnregisterVM", self.refused(409, "DELETE", f"/v1/vms/{serial}"))
        vm.agent.close()
        eventually(lambda: self.admin.get(f"/v1/vms/{serial}")["state"] == "lost", "the VM is lost")
        self.assertEqual(self.admin.ask("DELETE", f"/v1/vms/{serial}").status, 200)
        self.refused(404, "GET", f"/v1/vms/{serial}")
        self.assertIn("unknown", self.client().refused(Command.ATTACH_VM, {"containerId": vm.id}))

    def test_logLevel(self) -> None:
        """The log level can be set, and takes effect."""
        self.assertEqual(self.admin.get("/v1/loglevel"), {"level": "debug"})
        answer = self.admin.ask("PUT", "/v1/loglevel", {"level": "warning"})
        self.assertEqual((answer.status, answer.json), (200, {"level": "warn"}))
        before = len(self.daemon.log())
        vm = self.vm()
        self.assertNotIn(vm.id, self.daemon.log()[before:])
        self.assertIn("level", self.refused(400, "PUT", "/v1/loglevel", {"level": "loud"}))

    def test_drain(self) -> None:
        """A daemon that drains takes no new VMs, and serves those that it has."""
        vm = self.vm()
        self.admin.ask("POST", "/v1/drain", {"draining": True})
        self.assertTrue(self.admin.get("/v1/status")["draining"])
        agent = self.agent()
        text = self.client().refused(Command.REGISTER_VM, registration("late", agent))
        self.assertIn("late: the proxy is draining", text)
        vm.usable()
        self.admin.ask("POST", "/v1/drain", {"draining": False})
        self.vm()

    def test_events(self) -> None:
        """A listener is told what happens."""
        events = self.followed("/v1/events")
        self.assertEqual(events.line(), b": listening\n")
        vm = self.vm(1)
        told = events.until("vm-registered")
        self.assertEqual((told["vm"], told["level"]), (vm.id, "info"))
        self.assertEqual(self.find("/v1/vms", containerId=vm.id)["serial"], told["serial"])
        process = vm.start()
        self.assertEqual(events.until("shim-connected")["vm"], vm.id)
        self.assertEqual(events.until("process-started")["container"], process.container)
        process.exit(7)
        self.assertEqual(events.until("process-exited")["status"], 7)
        vm.agent.close()
        self.assertEqual(events.until("vm-lost")["vm"], vm.id)

    def test_backpressureEvents(self) -> None:
        """Backpressure is told at every log level, on and off."""
        self.admin.ask("PUT", "/v1/loglevel", {"level": "error"})
        process = self.process()
        events = self.followed(
            f"/v1/events?event=backpressure-on,backpressure-off&vm={process.vm.id}"
        )
        amount = 3 << 20

        def say() -> None:
            for _ in range(amount >> 12):
                process.say(b"x" * 4096)

        saying = threading.Thread(target=say)
        saying.start()
        self.addCleanup(saying.join)
        self.assertEqual(events.event()[0], "backpressure-on")
        shown = self.find("/v1/vms", containerId=process.vm.id)
        self.assertGreater(shown["bufferedOutput"], 900_000)
        self.assertIsNotNone(shown["blocked"])
        process.shim.output(Stream.STDOUT, amount)
        self.assertEqual(events.event()[0], "backpressure-off")
        eventually(
            lambda: not self.find("/v1/vms", containerId=process.vm.id)["blocked"], "it flows"
        )
        self.assertGreater(self.find("/v1/vms", containerId=process.vm.id)["blockedSeconds"], 0)

    def test_slowListener(self) -> None:
        """A listener that does not read is cut off, and told so where it stopped."""
        events = self.followed("/v1/events?event=command-failed")
        client = self.client()
        for _ in range(40):
            for _ in range(100):
                client.command(Command.ATTACH_VM, b'{"containerId":"%s"}' % (b"x" * 200))
            for _ in range(100):
                client.response(Command.ATTACH_VM)
        told = 0
        while (event := events.event())[0] == "command-failed":
            told += 1
        self.assertEqual(event[0], "cut-off")
        self.assertGreater(told, 100)
        self.assertLess(told, 4000)
        self.assertGreater(event[1]["missed"], 0)
        self.assertRaises(EOFError, events.event)

    def test_console(self) -> None:
        """What a console has said can be read, and followed."""
        path = os.path.join(self.daemon.directory, self.unique("c"))
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()
            agent, client, name = self.agent(), self.client(), self.unique()
            client.accepted(Command.REGISTER_VM, registration(name, agent, console=path))
            console, _ = listening.accept()
        with console:
            console.sendall(b"booting\xff\n")
            serial = self.find("/v1/vms", containerId=name)["serial"]
            url = f"/v1/vms/{serial}/console"
            eventually(lambda: self.admin.ask("GET", url).body, "the console's words")
            self.assertEqual(self.admin.ask("GET", url).body, b"booting\xff\n")
            followed = self.followed(f"{url}?follow=1")
            self.assertEqual(followed.line(), b"booting\xff\n")
            console.sendall(b"login:\n")
            self.assertEqual(followed.line(), b"login:\n")
            agent.close()
            self.assertEqual(followed.line(), b"")

    def test_metrics(self) -> None:
        """The metrics have what went through, also of VMs that are gone."""
        process = self.process()
        before = self.metrics()
        process.say(b"x" * 88)
        process.shim.output(Stream.STDOUT, 88)
        process.shim.stdin(b"y" * 8)
        process.vm.agent.stdin(process.number, 8)
        process.vm.client.hyper("ping")
        process.vm.agent.close()
        eventually(
            lambda: self.find("/v1/vms", containerId=process.vm.id)["state"] == "lost", "lost"
        )
        after = self.metrics()
        for name, more in (
            ('ccproxy_io_bytes_total{direction="out"}', 100),
            ('ccproxy_io_bytes_total{direction="in"}', 20),
            ('ccproxy_io_frames_total{direction="out"}', 1),
            ('ccproxy_agent_command_duration_seconds_count{command="ping",outcome="ok"}', 1),
            ('ccproxy_command_duration_seconds_count{command="Hyper",outcome="ok"}', 1),
            ('ccproxy_events_total{event="vm-lost"}', 1),
        ):
            self.assertEqual(after[name] - before.get(name, 0), more, name)
        self.assertEqual(after["process_max_fds"], before["process_max_fds"])

    def metrics(self) -> dict[str, float]:
        """The samples."""
        lines = self.admin.ask("GET", "/metrics").body.decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def test_health(self) -> None:
        """The daemon is healthy; one that hangs was not."""
        self.assertTrue(self.admin.get("/healthz")["healthy"])

    def test_profilesAreOff(self) -> None:
        """Without its option, no profile is made."""
        self.assertIn("--pprof", self.refused(409, "POST", "/v1/profile/start"))

    def test_refusals(self) -> None:
        """What cannot be answered is refused in JSON, with the status that fits."""
        self.assertIn("openapi", self.refused(404, "GET", "/v1/nothing"))
        self.refused(400, "GET", "/v1/vms/x")
        self.refused(413, "PUT", "/v1/loglevel", b" " * 70_000)
        self.refused(400, "PUT", "/v1/loglevel", b"[" * 50_000)
        answer = self.admin.ask("POST", "/v1/status")
        self.assertEqual((answer.status, answer.headers["Allow"]), (405, "GET, HEAD"))
        head = self.admin.ask("HEAD", "/v1/status")
        self.assertEqual((head.status, head.body), (200, b""))

    def test_garbage(self) -> None:
        """Whoever does not speak HTTP is hung up on at once."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(self.daemon.path + ".admin")
            connection.sendall(b"x" * 20_000)
            self.assertEqual(connection.recv(1), b"")

    def test_stranger(self) -> None:
        """Another user may not ask, even if the socket lets him."""
        if os.geteuid() != 0:
            raise unittest.SkipTest("only root can be somebody else")
        os.chmod(self.admin.path, 0o666)
        os.chmod(self.daemon.directory, 0o711)
        self.addCleanup(os.chmod, self.admin.path, 0o600)
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.settimeout(10)
            os.seteuid(65534)
            try:
                stranger.connect(self.admin.path)
            finally:
                os.seteuid(0)
            answer = stranger.recv(1000)
            self.assertEqual(stranger.recv(1000), b"")
        self.assertTrue(answer.startswith(b"HTTP/1.1 403 Forbidden\r\n"), answer)
        self.assertIn(b"for root and the user of the daemon only", answer)
        self.waitLog("user 65534 may not use the admin socket")


class SocketTests(DaemonTestCase):
    """
    Where the admin socket is, and where there is none.
    """

    def test_mode(self) -> None:
        """It is the owner's alone, next to the client socket, and gone at the end."""
        for daemon in self.daemons():
            daemon.start()
            daemon.waitLog("event=admin-socket")
            path = f"{daemon.path}.admin"
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
            self.assertEqual(daemon.stop(), 0)
            self.assertFalse(os.path.exists(path))

    def test_none(self) -> None:
        """There is none in pod mode, nor where none is wanted."""
        for daemon in (Daemon.byTwistd("--pod"), Daemon.byTwistd("--no-admin")):
            self.cleared(daemon).start()
            daemon.waitLog("event=started")
            self.assertEqual(sorted(os.listdir(daemon.directory)), ["log", "proxy.sock"])

    def test_asked(self) -> None:
        """In pod mode there is one if it is asked for."""
        daemon = self.cleared(Daemon("-admin-socket", "{socket}.mine"))
        daemon.arguments[-1] = f"{daemon.path}.mine"
        daemon.start()
        self.assertEqual(Admin(f"{daemon.path}.mine").get("/v1/status")["pid"], daemon.pid)

    def test_cannotListen(self) -> None:
        """A path that cannot be had ends the start if it was asked for, and else is a warning."""
        daemon = self.cleared(Daemon.byTwistd())
        os.mkdir(f"{daemon.path}.admin")
        daemon.start()
        daemon.waitLog("no admin socket: cannot listen on")
        asked = self.cleared(Daemon.byTwistd("--admin-socket=/proc/none/admin.sock"))
        asked.spawn()
        self.assertEqual(asked.wait(), 1)
        asked.waitLog("cannot start: cannot listen on /proc/none/admin.sock")

    def test_stop(self) -> None:
        """The daemon can be ended, in order."""
        daemon = self.cleared(Daemon.byTwistd()).start()
        self.vm(daemon)
        events = Admin(f"{daemon.path}.admin").follow("/v1/events")
        self.addCleanup(events.close)
        answer = Admin(f"{daemon.path}.admin").ask("POST", "/v1/stop")
        self.assertEqual((answer.status, answer.json), (202, {"stopping": True}))
        self.assertEqual(daemon.wait(), 0)
        self.assertEqual(events.until("stopping")["msg"], "the daemon stops")
        self.assertFalse(os.path.exists(daemon.path))

    def test_tcp(self) -> None:
        """Metrics and health can be had at a TCP address, and nothing else."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        daemon = self.cleared(Daemon.byTwistd(f"--metrics-address={address}", "--no-admin"))
        daemon.start()
        with urlopen(f"http://{address}/metrics", timeout=30) as response:
            self.assertIn(b"ccproxy_build_info{", response.read())
        with urlopen(f"http://{address}/healthz", timeout=30) as response:
            self.assertIn(b'"healthy":true', response.read())
        with self.assertRaisesRegex(Exception, "404"):
            urlopen(f"http://{address}/v1/dump", timeout=30)
        second = self.cleared(Daemon.byTwistd(f"--metrics-address={address}"))
        second.spawn()
        self.assertEqual(second.wait(), 1)
        second.waitLog(f"cannot serve metrics on {address}: ")

    def test_anyPort(self) -> None:
        """With port 0 the log has the address where metrics can be had."""
        addresses = ["127.0.0.1:0", ":0"]
        with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
            addresses.append("[::1]:0")
        for address in addresses:
            daemon = self.cleared(Daemon.byTwistd(f"--metrics-address={address}")).start()
            url = daemon.waitLog("metrics: ").partition("metrics: ")[2].split()[0]
            with urlopen(url, timeout=30) as response:
                self.assertIn(b"ccproxy_build_info{", response.read())
            self.assertEqual(daemon.stop(), 0)

    def test_hangs(self) -> None:
        """A daemon whose loop was late is not healthy, for a while."""
        daemon = self.cleared(Daemon.byTwistd("--max-loop-lag=2")).start()
        admin = Admin(f"{daemon.path}.admin")
        eventually(lambda: admin.ask("GET", "/healthz").status == 200, "it is healthy")
        os.kill(daemon.pid, 19)
        time.sleep(4)
        os.kill(daemon.pid, 18)
        answer = admin.ask("GET", "/healthz")
        self.assertEqual((answer.status, answer.json["healthy"]), (503, False), answer)
        self.assertGreater(answer.json["loopLag"], 2)

    def test_orphan(self) -> None:
        """A VM that nobody looks after is reported, and counted until somebody does."""
        daemon = self.cleared(Daemon.byTwistd("--orphan=report", "--orphan-after=0.3")).start()
        admin = Admin(f"{daemon.path}.admin")
        vm = self.vm(daemon)
        time.sleep(0.6)
        self.assertNotIn("vm-orphaned", daemon.log())
        vm.client.close()
        self.assertIn("vm=vm", daemon.waitLog("vm-orphaned"))
        self.assertIn(b"ccproxy_orphaned_vms 1.0", admin.ask("GET", "/metrics").body)
        vm.attach()
        eventually(
            lambda: b"ccproxy_orphaned_vms 0.0" in admin.ask("GET", "/metrics").body, "adopted"
        )

    def test_profile(self) -> None:
        """With -pprof a profile can be made while the daemon works."""
        daemon = self.cleared(Daemon("-pprof")).start()
        admin = Admin(f"{daemon.path}.admin")
        for kind, sign in (("calls", b"render"), ("samples", b"ccproxy.")):
            started = admin.ask("POST", "/v1/profile/start", {"kind": kind, "seconds": 300})
            self.assertEqual(started.json, {"kind": kind, "running": True})
            self.assertEqual(admin.ask("POST", "/v1/profile/start").status, 409)
            until = daemon.cpuSeconds() + 0.3
            while daemon.cpuSeconds() < until:
                admin.get("/v1/status")
            self.assertEqual(admin.ask("POST", "/v1/profile/stop").json["running"], False)
            profile = admin.ask("GET", "/v1/profile").body
            self.assertIn(b"status" if kind == "calls" else sign, profile)
