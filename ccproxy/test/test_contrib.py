"""
What contrib/ knows of the daemon: its metrics, its paths.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import ccproxy

from ..admin.events import Events
from ..admin.health import Health
from ..admin.looplag import LoopLag
from ..admin.metrics import DaemonCollector, Metrics
from ..config.file import DEFAULT_FILE
from ..log.sinks import JOURNAL, SYSLOG
from ..net.address import DEFAULT_ADMIN_SOCKET, DEFAULT_SOCKET
from ..service.ksm import KSM_FILES
from .memory import World

_METRIC = re.compile(r"\b(?:ccproxy|process)_[a-z_]+\b")
_EVENT = re.compile(r'\bevent=~?\\?"([a-z|-]+)')


def contrib(path: str) -> Path:
    """A file of contrib/."""
    source = os.environ.get("CCPROXY_SOURCE") or Path(ccproxy.__file__).parent.parent
    found = Path(source, "contrib", path)
    if not found.exists():
        raise SkipTest(f"there is no {found}; CCPROXY_SOURCE names the sources")
    return found


def expressions(part: Any) -> Iterator[str]:
    """All queries of a dashboard, or of a part of one."""
    if isinstance(part, dict):
        if "expr" in part:
            yield part["expr"]
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from expressions(each)


def dashboard() -> str:
    """All queries of the dashboard, one a line."""
    return "\n".join(expressions(json.loads(contrib("grafana/ccproxy.json").read_text())))


class MetricsTests(SynchronousTestCase):
    """contrib/prometheus and contrib/grafana against /metrics."""

    def setUp(self) -> None:
        """The page of a daemon that has just begun."""
        clock = Clock()
        health = Health(LoopLag(clock), 1.0, lambda: True)
        collector = DaemonCollector(World().registry, health, Events(clock), lambda: 0)
        self.page = Metrics(collector).page().body.decode()
        self.known = set()
        for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", self.page, re.MULTILINE):
            parts = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
            self.known |= {name + part for part in parts}

    def check(self, text: str, least: int) -> None:
        """Check that all metrics and events in a text are on the page, and are so many."""
        named = set(_METRIC.findall(text))
        self.assertGreater(len(named), least)
        self.assertEqual(named - self.known, set())
        for event in {name for found in _EVENT.findall(text) for name in found.split("|")}:
            self.assertIn(f'ccproxy_events_total{{event="{event}"}} 0.0\n', self.page)

    def test_alerts(self) -> None:
        """Each alert is about metrics and events that are there from the start."""
        text = contrib("prometheus/ccproxy.rules.yml").read_text()
        rules = re.findall(r"^ +expr: (.*?)\n +(?:for|labels):", text, re.MULTILINE | re.DOTALL)
        self.assertEqual(len(rules), text.count("- alert: "))
        self.check("\n".join(rules), 10)
        self.check(contrib("prometheus/ccproxy.test.yml").read_text(), 10)

    def test_dashboard(self) -> None:
        """Each panel of the dashboard shows metrics that are there from the start."""
        self.check(dashboard(), 20)

    def test_everything(self) -> None:
        """What the daemon counts is on the dashboard, less what is about itself alone."""
        ours = {name for name in self.known if name.startswith("ccproxy_")}
        ours -= {name for name in ours if name.endswith(("_sum", "_bucket", "_count"))}
        missing = ours - set(_METRIC.findall(dashboard()))
        self.assertEqual(missing, {"ccproxy_draining", "ccproxy_event_listeners"})


class PoliciesTests(SynchronousTestCase):
    """contrib/selinux and contrib/apparmor against the defaults."""

    def test_selinux(self) -> None:
        """The folders of the sockets and of the configuration have labels."""
        text = contrib("selinux/ccproxy.fc").read_text()
        for path in (DEFAULT_SOCKET, DEFAULT_ADMIN_SOCKET, DEFAULT_FILE):
            folder = os.path.dirname(path).removeprefix("/var")
            self.assertRegex(text, rf"(?m)^{folder}\(/\.\*\)\?\t")

    def test_apparmor(self) -> None:
        """They may be used, and so may KSM, syslog and the journal."""
        text = contrib("apparmor/ccproxy").read_text()
        folders = {
            os.path.basename(os.path.dirname(p)) for p in (DEFAULT_SOCKET, DEFAULT_ADMIN_SOCKET)
        }
        found = re.search(r"@\{run\}/\{([^}]*)\}/\{,\*\*\} rwk,", text)
        assert found is not None
        self.assertLessEqual(folders, set(found[1].split(",")))
        self.assertIn(f"{os.path.dirname(DEFAULT_FILE)}/{{,**}} r,", text)
        self.assertIn(f"@{{sys}}/kernel/mm/ksm/{{{','.join(KSM_FILES)}}} rw,", text)
        self.assertIn(f"{SYSLOG} w,", text)
        self.assertIn("@{run}/systemd/{notify,journal/dev-log,journal/socket} w,", text)
        self.assertEqual(JOURNAL, "/run/systemd/journal/socket")
