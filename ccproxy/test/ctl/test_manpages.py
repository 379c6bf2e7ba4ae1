"""
The manual pages have all that the command lines have, and are what C{man} reads.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from unittest import skipIf

from twisted.trial.unittest import SynchronousTestCase

from ...config.options import Options
from ...ctl import completion, manpages
from ...ctl.asking import STATUSES
from ...ctl.commandline import wordsOf
from ...ctl.manpages import Page, escaped
from ...service.ccproxy_command import FLAGS


class PageTests(SynchronousTestCase):
    """What is on the pages."""

    def assertExplained(self, name: str, text: str, page: str) -> None:
        """An option is there, as it is typed, with its explanation."""
        [_, *places] = page.split(f"\\fB{escaped(name)}\\fR")
        explained = any(escaped(text) in place.partition("\n.")[0] for place in places)
        self.assertTrue(explained, f"{name}: {text}")

    def test_ctl(self) -> None:
        page = manpages.ctlPage().text
        for line in completion.lines():
            _, _, part = page.partition(f'.SS "{escaped(line.name)}"\n')
            part = part.partition("\n.S")[0]
            for word in wordsOf(line.parser):
                for name in word.names:
                    if name not in ("-h", "--help"):
                        self.assertExplained(name, word.help, part)
        for status, text in STATUSES.items():
            self.assertExplained(str(status), text, page)

    def test_daemon(self) -> None:
        page = manpages.daemonPage().text
        for flag in FLAGS:
            self.assertExplained(f"-{flag.name}", flag.help, page)

    def test_twistd(self) -> None:
        page = manpages.twistdPage().text
        options = Options()
        for name in {*options.longOpt} - {"help", "version", "help=", "version="}:
            bare = name.removesuffix("=")
            text = options.docs[bare].removesuffix(".")
            self.assertExplained(f"--{bare}", text, page)

    def test_escaped(self) -> None:
        page = Page("x", 1, "a")
        page.paragraph(".SH 'evil' \\fB --x")
        page.paragraph("two\n.lines")
        self.assertTrue(
            page.text.endswith(
                ".PP\n\\&.SH \\(aqevil\\(aq \\efB \\-\\-x\n.PP\n.nf\ntwo\n\\&.lines\n.fi\n"
            )
        )

    @skipIf(shutil.which("groff") is None, "there is no groff")
    def test_roff(self) -> None:
        """groff has nothing to complain of, and shows what can be copied."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.assertEqual(manpages.main([folder]), 0)
        for (name, section), make in manpages.PAGES.items():
            path = Path(folder) / f"man{section}" / f"{name}.{section}"
            self.assertEqual(path.read_text(), make().text)
            result = subprocess.run(
                ["groff", "-man", "-ww", "-Tascii", "-P-c", path], capture_output=True, text=True,
                check=True, timeout=30,
            )  # fmt: skip
            self.assertEqual(result.stderr, "", name)
            self.assertNotIn("\\", result.stdout)
            self.assertIn(f"{name.upper()}({section})", result.stdout)
