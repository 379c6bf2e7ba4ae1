"""
The benchmark measures what it says, and says so when it cannot or when a bound is not kept.

It is no part of the package. It is found beside it, or where C{CCPROXY_SOURCE} says that the
sources are.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import ccproxy
from ccproxy.testing.daemon import Daemon


def _folder() -> Path:
    """
    Where the benchmark is.

    @raise SkipTest: it is not here.
    """
    source = os.environ.get("CCPROXY_SOURCE") or Path(ccproxy.__file__).parent.parent
    folder = Path(source) / "bench" / "speed"
    if not folder.exists():
        raise SkipTest(f"there is no benchmark in {folder}; CCPROXY_SOURCE names the sources")
    return folder


def _module(name: str) -> Any:
    """One of its modules, by its place: the sources must not hide the package that is tested."""
    folder = _folder()
    if "benchspeed" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "benchspeed", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules["benchspeed"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["benchspeed"])
    return import_module(f"benchspeed.{name}")


def _sample(cpu: float, **more: object) -> dict[str, object]:
    return {"cpu_us": cpu, "wall_us": 1.0, "busy": 1.0, "load_busy": 0.5, **more}


class BoundsTests(SynchronousTestCase):
    """Comparing with bounds."""

    def setUp(self) -> None:
        self.results, self.rows = _module("results"), _module("rows")
        self.found = {
            "stdout-512": {"ccproxy": _sample(0.6), "relay": _sample(0.2), "socat": _sample(0.4)},
            "interleaved": {"ccproxy": _sample(1.8), "kept": _sample(2.7)},
        }

    def check(self, bounds: object) -> list[tuple[float, bool]]:
        """What is found, and whether it is good."""
        verdicts = self.results.check(self.rows.ROWS, self.found, bounds)
        return [(round(each.found, 6), each.good) for each in verdicts]

    def test_ratios(self) -> None:
        """A figure is compared in times that of a yardstick, also one of another row."""
        for most, good in ((2.9, False), (3.0, True)):
            bounds = {"stdout-512": {"cpu_us": {"relay": most}}}
            self.assertEqual(self.check(bounds), [(3.0, good)])
        bounds = {"interleaved": {"cpu_us": {"socat": 4.4, "absolute": 1.9}}}
        self.assertEqual(self.check(bounds), [(4.5, False), (1.8, True)])

    def test_kept(self) -> None:
        """What a journal costs is compared with the same without one."""
        for most, good in ((1.4, False), (1.5, True)):
            self.assertEqual(
                self.check({"interleaved": {"cpu_us": {"kept": most}}}), [(1.5, good)]
            )
        self.assertRaises(KeyError, self.check, {"stdout-512": {"cpu_us": {"kept": 2}}})
        (_, line) = _module("report").kept(self.found)
        self.assertEqual(line[1:], ["1.8 us", "2.7 us", "1.50"])

    def test_nothingMeasured(self) -> None:
        """A bound for what was not measured is an error, and not kept silently."""
        self.assertRaises(KeyError, self.check, {"interleaved": {"p50": {"relay": 2}}})
        self.assertRaises(KeyError, self.check, {"interleaved": {"p50": {"absolute": 2}}})

    def test_committed(self) -> None:
        """The bounds that are committed are for rows and yardsticks that there are."""
        names = {row.name for row in self.rows.ROWS}
        bounds = tomllib.loads((_folder() / "bounds.toml").read_text())
        self.assertEqual(set(bounds) - names, set())
        for measures in bounds.values():
            for subjects in measures.values():
                self.assertEqual(set(subjects) - {"kept", "relay", "socat", "absolute"}, set())

    def test_medians(self) -> None:
        """Of numbers and of each place of a list."""
        samples = [{"a": n, "b": [n, 9 * n]} for n in (5, 1, 3)]
        self.assertEqual(self.results.medians(samples), {"a": 3, "b": [3, 27]})


class PlotTests(SynchronousTestCase):
    """What is drawn."""

    def test_places(self) -> None:
        """Lines lie within the axes, the greater the higher and further to the right."""
        svg = _module("svg")
        for logarithmic in (False, True):
            axes = svg.Axis("x", logarithmic), svg.Axis("<y>", logarithmic)
            root = ElementTree.fromstring(
                svg.plot("a & b", *axes, [("one", [(1, 0.02), (7, 0.3), (8192, 40)])])
            )
            line = root.find("{*}polyline")
            assert line is not None
            points = [
                tuple(map(float, point.split(","))) for point in line.attrib["points"].split()
            ]
            self.assertEqual(points, sorted(points))
            heights = [y for _, y in points]
            self.assertEqual(heights, sorted(heights, reverse=True))
            for x, y in points:
                self.assertTrue(svg.LEFT <= x <= svg.WIDTH - svg.RIGHT, x)
                self.assertTrue(svg.TOP <= y <= svg.HEIGHT - svg.BOTTOM, y)


class LoadTests(SynchronousTestCase):
    """The load generator."""

    def setUp(self) -> None:
        folder = _folder()
        if not shutil.which("cc"):
            raise SkipTest("there is no C compiler")
        self.programs = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.programs)
        for name in ("load", "relay"):
            words = ["cc", "-Wall", "-Werror", "-Wno-unused-function", "-o"]
            words += [str(self.programs / name), str(folder / f"{name}.c")]
            subprocess.run(words, check=True)

    def load(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [str(self.programs / "load"), *words, f"directory={self.programs}"],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def test_proxy(self) -> None:
        """Every scenario comes to its end with the daemon, and has figures."""
        daemon = Daemon().start()
        self.addCleanup(daemon.clear)
        for scenario in (
            "stdout size=300 count=5000 vms=2 shims=3",
            "stdin size=9000 count=500 vms=2 shims=2",
            "echo size=5 count=50",
            "ping count=50",
            "setup vms=6 shims=2 step=3 count=5",
            "setup vms=3 shims=2 depth=0 keep=0 step=3 count=0",
            "clients count=20",
            "fair vms=2 shims=2 size=1 count=5 rate=100 flood=stdout",
            "fair vms=2 shims=2 size=1 count=5 rate=100 flood=own",
        ):
            words = scenario.split()
            done = self.load(*words, f"socket={daemon.path}", f"pid={daemon.pid}")
            self.assertEqual((done.returncode, done.stderr), (0, ""), scenario)
            found = json.loads(done.stdout)
            self.assertTrue(found["ok"])
            if words[0] in ("clients", "setup"):
                self.assertEqual(len(found["pss_kib"]), 3 if "vms=6" in words else 2)
            if words[0] != "clients":
                self.assertGreater(found["cpu_us"], 0.001)
            if "latency_us" in found:
                latency = found["latency_us"]
                self.assertEqual(latency, sorted(latency))
                self.assertGreater(latency[0], 0)

    def test_relay(self) -> None:
        """The same streams go through a plain relay."""
        near, far = (str(self.programs / name) for name in ("near", "far"))
        for scenario in (
            "stdout size=300 count=5000",
            "stdin size=9000 count=500",
            "echo count=50",
        ):
            relay = subprocess.Popen([str(self.programs / "relay"), near, far])
            try:
                done = self.load(
                    *scenario.split(), f"near={near}", f"far={far}", f"pid={relay.pid}"
                )
            finally:
                relay.kill()
                relay.wait()
            self.assertEqual((done.returncode, done.stderr), (0, ""), scenario)
            self.assertGreater(json.loads(done.stdout)["cpu_us"], 0)

    def test_damage(self) -> None:
        """A stream that somebody damages is no result."""
        near, far = (str(self.programs / name) for name in ("near", "far"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(near)
            listener.listen()

            def damage() -> None:
                """Lose one byte of what the agent writes."""
                shim, agent = listener.accept()[0], socket.socket(socket.AF_UNIX)
                agent.connect(far)
                agent.recv(1)
                try:
                    while data := agent.recv(4096):
                        shim.sendall(data)
                except OSError:
                    pass
                shim.close()
                agent.close()

            thread = threading.Thread(target=damage)
            thread.start()
            done = self.load("stdout", f"near={near}", f"far={far}", f"pid={os.getpid()}")
            thread.join()
        self.assertEqual(done.returncode, 1)
        self.assertIn("the stream has lost its step", done.stderr)
