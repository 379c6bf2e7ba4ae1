"""
No test depends on the machine's speed.
"""

from __future__ import annotations

import ast
from pathlib import Path

from hypothesis import HealthCheck, settings
from twisted.trial.unittest import SynchronousTestCase


class SpeedTests(SynchronousTestCase):
    """Properties have no deadline for their examples."""

    def test_profile(self) -> None:
        """The profile in force has no deadline and accepts slow examples."""
        profile = settings()
        self.assertIsNone(profile.deadline)
        self.assertIn(HealthCheck.too_slow, profile.suppress_health_check)

    def test_deadlines(self) -> None:
        """No test module sets another deadline."""
        for path in Path(__file__).parent.rglob("test_*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and "settings" in ast.unparse(node.func):
                    names = [keyword.arg for keyword in node.keywords]
                    self.assertNotIn("deadline", names, f"{path}:{node.lineno}")
