"""
Tests for the rest of L{ccproxy.admin}: metrics, profiles, consoles, the description.
"""

from __future__ import annotations

import json
import marshal
import re
import time
from importlib.resources import files
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock
from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase

from ...admin import metrics
from ...admin.api import Api
from ...admin.calls import Call, Refused
from ...admin.console import ConsoleFollower
from ...admin.events import Events
from ...admin.health import Health
from ...admin.looplag import LoopLag
from ...admin.metrics import DaemonCollector, Metrics
from ...admin.openapi import document
from ...admin.profiling import Profiler, ProfileRequest
from ...admin.routes import ROUTES
from ...config.settings import Settings
from ...core.console import ConsoleRing
from ...log.daemonlog import DaemonLog
from ...wire.codes import Command
from ..memory import World
from .test_events import Outflow


class MetricsTests(SynchronousTestCase):
    """
    Tests for L{ccproxy.admin.metrics}.
    """

    def setUp(self) -> None:
        self.world = World()
        health = Health(LoopLag(self.world.clock), 1.0, lambda: True)
        self.events = Events(self.world.clock)
        collector = DaemonCollector(self.world.registry, health, self.events, lambda: 2)
        self.metrics = Metrics(collector)

    def samples(self) -> dict[str, float]:
        """All samples on the page, which Prometheus's own parser must be able to read."""
        text = self.metrics.page().body.decode()
        return {
            sample.name
            + "".join(
                f" {name}={value}" for name, value in sorted(sample.labels.items())
            ): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def test_log(self) -> None:
        """The page has what is not in the log."""
        log = DaemonLog(Settings(logRate=1), [])
        for _ in range(8):
            log({"log_time": 0.0, "log_level": LogLevel.info, "log_format": "x"})
        health = Health(LoopLag(self.world.clock), 1.0, lambda: True)
        collector = DaemonCollector(self.world.registry, health, self.events, log=log)
        self.metrics = Metrics(collector)
        samples = self.samples()
        name = "ccproxy_log_entries_left_out_total"
        self.assertEqual((samples[f"{name} reason=rate"], samples[f"{name} reason=sink"]), (3, 0))

    def test_page(self) -> None:
        """The page has the numbers of everything that happens."""
        agent, runtime, tokens = self.world.register(streams=1)
        self.world.process(agent, runtime, tokens[0])
        agent.output(3, b"x" * 88)
        runtime.hyper("ping")
        self.world.clock.advance(0.002)
        agent.ack()
        runtime.frames()
        runtime.refused(Command.ATTACH_VM, {"containerId": "other"})
        runtime.refused(99)
        self.events.counts["vm-lost"] += 1
        found = self.samples()
        for name, value in {
            "ccproxy_vms state=registered": 1,
            "ccproxy_vms state=lost": 0,
            "ccproxy_sessions state=running": 1,
            "ccproxy_clients state=open": 2,
            "ccproxy_shims": 1,
            "ccproxy_connections_total": 2,
            "ccproxy_orphaned_vms": 2,
            "ccproxy_healthy": 1,
            "ccproxy_io_frames_total direction=out": 1,
            "ccproxy_io_bytes_total direction=out": 100,
            "ccproxy_events_total event=vm-lost": 1,
            "ccproxy_command_errors_total kind=UnknownVM": 1,
            "ccproxy_command_duration_seconds_count command=AttachVM outcome=error": 1,
            "ccproxy_command_duration_seconds_count command=opcode 99 outcome=error": 1,
            "ccproxy_command_duration_seconds_sum command=Hyper outcome=ok": 0.002,
            "ccproxy_agent_command_duration_seconds_bucket command=ping le=0.001 outcome=ok": 0,
            "ccproxy_agent_command_duration_seconds_bucket command=ping le=0.0025 outcome=ok": 1,
            "ccproxy_agent_command_duration_seconds_bucket command=ping le=+Inf outcome=ok": 1,
        }.items():
            self.assertEqual(found.get(name), value, name)
        self.assertGreater(found["process_resident_memory_bytes"], 1 << 20)
        self.assertTrue(any(name.startswith("ccproxy_build_info python=3") for name in found))

    def test_losses(self) -> None:
        """What crashes have cost is there in all, and of the sessions that have lost most."""
        self.patch(metrics, "MOST_SESSIONS", 2)
        _, _, tokens = self.world.register(streams=4)
        found = self.samples()
        self.assertEqual(found["ccproxy_crash_lost_bytes_total direction=out"], 0)
        self.assertFalse([name for name in found if name.startswith("ccproxy_session_")])
        self.world.registry.crashLoss = (70, 9)
        for token, loss in zip(tokens, ((30, 0), (0, 0), (10, 0), (20, 9)), strict=True):
            self.world.registry.tokens[token].crashLoss = loss
        found = self.samples()
        self.assertEqual(found["ccproxy_crash_lost_bytes_total direction=out"], 70)
        self.assertEqual(found["ccproxy_crash_lost_bytes_total direction=in"], 9)
        first, _, _, last = (f"serial=1 session={token[:6]}... vm=vm" for token in tokens)
        name = "ccproxy_session_crash_lost_bytes_total"
        self.assertEqual(
            {key: value for key, value in found.items() if key.startswith(name)},
            {
                f"{name} direction=out {first}": 30,
                f"{name} direction=in {first}": 0,
                f"{name} direction=out {last}": 20,
                f"{name} direction=in {last}": 9,
            },
        )

    def test_backpressure(self) -> None:
        """A pause counts while it lasts, and once it is over."""
        world = self.world = World(sessionBuffer=4096)
        self.metrics = Metrics(
            DaemonCollector(
                world.registry, Health(LoopLag(world.clock), 1, lambda: True), self.events
            )
        )
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        shim.connection.room = 0
        for _ in range(6):
            agent.output(3, b"x" * 1000)
        for state in (1, 0):
            world.clock.advance(1)
            found = self.samples()
            self.assertEqual(found["ccproxy_blocked_vms"], state)
            self.assertEqual(found["ccproxy_backpressure_seconds_total"], 1)
            self.assertEqual(found["ccproxy_buffered_bytes"] > 0, bool(state))
            shim.connection.makeRoom()
        self.assertNotIn("ccproxy_orphaned_vms", found)


class LevelTests(SynchronousTestCase):
    """
    Tests for the log level that L{Api} sets.
    """

    def test_names(self) -> None:
        """Every name of a level is taken; another is refused, and those that there are named."""
        world: Any = World()
        nothing: Any = None
        log = DaemonLog(Settings(), [])
        health = Health(LoopLag(world.clock), 1.0, bool)
        events = Events(world.clock)
        api = Api(world.registry, world.clock, health, (0.0, 0.0), events, nothing, log=log)
        answer = api.setLogLevel(Call(body=b'{"level": "WARNING"}'))
        self.assertEqual((answer.level, log.level), ("warn", "warn"))
        refused = self.assertRaises(Refused, api.setLogLevel, Call(body=b'{"level": "loud"}'))
        self.assertEqual(refused.status, 400)
        names = "debug, info, warn, warning, error, fatal, panic"
        self.assertEqual(str(refused), f"unknown log level 'loud': it is one of {names}")
        self.assertEqual(log.level, "warn")


class ProfilerTests(SynchronousTestCase):
    """
    Tests for L{Profiler}.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.profiler = Profiler(self.clock)
        self.addCleanup(self.profiler.close)

    def work(self) -> None:
        """Use the processor for a while."""
        until = time.process_time() + 0.2
        while time.process_time() < until:
            json.dumps(list(range(3000)))

    def refused(self, action: Any, *args: Any) -> int:
        """The status of a refusal."""
        refused: Refused = self.assertRaises(Refused, action, *args)
        return refused.status

    def test_samples(self) -> None:
        """Samples are stacks, folded: what they fold has been called from here."""
        self.profiler.start(ProfileRequest("samples", 10))
        self.work()
        self.profiler.stop()
        text = self.profiler.result().body.decode()
        self.assertRegex(text, r"(?m)^\S+;.*ProfilerTests\.work;.*json.* \d+$")
        for line in text.splitlines():
            self.assertRegex(line, r"^\S+( \S+)* \d+$")

    def test_calls(self) -> None:
        """Calls are what pstats reads."""
        self.profiler.start(ProfileRequest("calls", 10))
        self.work()
        self.profiler.stop()
        calls = {
            name: stat[0] for (*_, name), stat in marshal.loads(self.profiler.result().body).items()
        }
        self.assertEqual(calls["work"], 1)
        self.assertGreater(calls["dumps"], 10)

    def test_end(self) -> None:
        """A profile ends by itself; stopping it then is no error."""
        self.profiler.start(ProfileRequest("samples", 10))
        self.assertEqual(self.refused(self.profiler.result), 409)
        self.clock.advance(10)
        self.profiler.result()
        self.assertFalse(self.profiler.stop().running)

    def test_one(self) -> None:
        """One at a time; the next one replaces it."""
        self.profiler.start(ProfileRequest())
        self.assertEqual(self.refused(self.profiler.start, ProfileRequest()), 409)
        self.profiler.stop()
        self.profiler.start(ProfileRequest())
        self.assertEqual(self.refused(self.profiler.result), 409)

    def test_none(self) -> None:
        """Where none was begun there is nothing to end, and nothing to have."""
        self.assertEqual(self.refused(self.profiler.stop), 409)
        self.assertEqual(self.refused(self.profiler.result), 404)


class ConsoleTests(SynchronousTestCase):
    """
    Tests for L{ConsoleFollower}.
    """

    def setUp(self) -> None:
        self.ring = ConsoleRing(10)
        self.ring.add(memoryview(b"before"))
        self.follower, self.outflow = ConsoleFollower(self.ring), Outflow()
        self.follower.begin(self.outflow)

    def test_follow(self) -> None:
        """It gets what was said last, and then what is said."""
        self.ring.add(memoryview(b"more"))
        self.assertEqual(bytes(self.outflow.written), b"beforemore")
        self.ring.close()
        self.assertTrue(self.outflow.finished)

    def test_slow(self) -> None:
        """While it does not read it keeps nothing; what has left the ring is missing."""
        self.follower.pause()
        self.ring.add(memoryview(b"0123456789"))
        self.ring.add(memoryview(b"abc"))
        self.assertEqual(bytes(self.outflow.written), b"before")
        self.follower.resume()
        self.assertEqual(bytes(self.outflow.written), b"before3456789abc")

    def test_characters(self) -> None:
        """No character is cut, neither by a slow reader nor by the guest's own pieces."""
        self.ring.add(memoryview("é€".encode()[:3]))
        self.follower.pause()
        self.ring.add(memoryview("é€é€é€x".encode()[3:]))
        self.follower.resume()
        self.assertEqual(bytes(self.outflow.written).decode(), "beforeé€é€x")

    def test_closedMeanwhile(self) -> None:
        """One that was slow at the end gets the rest before it is finished."""
        self.follower.pause()
        self.ring.add(memoryview(b"bye"))
        self.ring.close()
        self.assertFalse(self.outflow.finished)
        self.follower.resume()
        self.assertEqual(bytes(self.outflow.written), b"beforebye")
        self.assertTrue(self.outflow.finished)

    def test_gone(self) -> None:
        """One that has gone is told nothing."""
        self.follower.gone()
        self.ring.add(memoryview(b"x"))
        self.assertEqual(bytes(self.outflow.written), b"before")


class DescriptionTests(SynchronousTestCase):
    """
    Tests for C{openapi.json}.
    """

    def test_file(self) -> None:
        """The file is what the routes and views make."""
        shipped = json.loads((files("ccproxy.admin") / "openapi.json").read_text())
        self.assertEqual(
            shipped,
            document(),
            "python -m ccproxy.admin.openapi > ccproxy/admin/openapi.json",
        )

    def test_described(self) -> None:
        """Every field of every view is described, in words without markup."""
        for name, schema in document()["components"]["schemas"].items():
            for field, place in schema.get("properties", {}).items():
                self.assertIn("description", place, f"{name}.{field}")
                self.assertNotRegex(place["description"], r"[CLB]\{")

    def test_routes(self) -> None:
        """No two routes answer the same."""
        shapes = [(route.method, re.sub(r"\{\w+\}", "1", route.path)) for route in ROUTES]
        for method, path in shapes:
            found = [
                route
                for route in ROUTES
                if route.method == method and route.match(path) is not None
            ]
            self.assertEqual(len(found), 1, f"{method} {path}")
