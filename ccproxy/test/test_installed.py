"""
What the wheel installs works without the checkout that it was built from.
"""

from __future__ import annotations

import os
import subprocess
import sys

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

import ccproxy


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of the installed commands from the root folder."""
    path = os.path.join(os.path.dirname(sys.executable), command[0])
    return subprocess.run(
        [path, *command[1:]], cwd="/", capture_output=True, text=True, timeout=60, check=False
    )


class InstalledTests(SynchronousTestCase):
    """The installed package, its plugin and its commands."""

    def test_inSitePackages(self) -> None:
        """The package under test is the installed one."""
        folder = os.path.dirname(os.path.dirname(ccproxy.__file__))
        self.assertEqual(os.path.basename(folder), "site-packages")

    def test_typed(self) -> None:
        """Users of the library see its types."""
        folder = os.path.dirname(ccproxy.__file__)
        self.assertTrue(os.path.exists(os.path.join(folder, "py.typed")))

    def test_pluginsOfOthers(self) -> None:
        """Our plugin stands beside Twisted's own and hides none of them."""
        names = {plugin.tapname for plugin in getPlugins(IServiceMaker)}
        self.assertTrue({"ccproxy", "web"} <= names, names)

    def test_twistd(self) -> None:
        """C{twistd ccproxy --help} works from any folder."""
        result = _run("twistd", "ccproxy", "--help")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("--embedded-vm", result.stdout)

    def test_historicCommand(self) -> None:
        """C{cc-proxy} says its version as runtimes expect it."""
        result = _run("cc-proxy", "-version")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout, f"Version: {ccproxy.__version__}\n")

    def test_tools(self) -> None:
        """C{ccproxyctl --help} names its commands."""
        result = _run("ccproxyctl", "--help")
        self.assertEqual(result.returncode, 0, result.stderr)
        for name in ("run", "exec", "shim", "demo"):
            self.assertIn(name, result.stdout)
