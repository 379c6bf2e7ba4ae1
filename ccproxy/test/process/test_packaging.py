"""
Products of a checkout: the source archive, the wheel, an editable installation.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from unittest import SkipTest
from zipfile import ZipFile

from twisted.trial.unittest import SynchronousTestCase


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel."""
    with ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


class PackagingTests(SynchronousTestCase):
    """The packages, made of a copy of the checkout in a folder whose name has a space."""

    def setUp(self) -> None:
        """Copy the files that git has."""
        source = os.environ.get("CCPROXY_SOURCE")
        if source is None or not os.path.exists(os.path.join(source, ".git")):
            raise SkipTest("the checkout is not here")
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=source, capture_output=True, text=True, check=True,
        )  # fmt: skip
        self.folder = Path(self.mktemp()).absolute()
        self.source = self.folder / "a checkout"
        self.files = set()
        for name in filter(None, listed.stdout.split("\0")):
            if os.path.exists(os.path.join(source, name)):
                self.files.add(name)
                (self.source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(os.path.join(source, name), self.source / name)

    def build(self, what: str, source: Path) -> Path:
        """Build something of a folder; what was built."""
        program = "import sys; from setuptools import build_meta;"
        program += f"print(build_meta.build_{what}(sys.argv[1]), file=sys.stderr)"
        built = subprocess.run(
            [sys.executable, "-c", program, str(self.folder)],
            cwd=source, capture_output=True, text=True, timeout=300, check=True,
        )  # fmt: skip
        return self.folder / built.stderr.split()[-1]

    def test_sdist(self) -> None:
        """The archive has all that git has, and makes the same wheel as the checkout."""
        archive = self.build("sdist", self.source)
        wheel = contents(self.build("wheel", self.source))
        with tarfile.open(archive) as tar:
            tar.extractall(self.folder)
        [unpacked] = self.folder.glob("ccproxy-*/")
        found = {str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file()}
        made = {name for name in found if name == "PKG-INFO" or ".egg-info/" in name}
        self.assertEqual(found - made, self.files)
        self.assertEqual(contents(self.build("wheel", unpacked)), wheel)

    def test_editable(self) -> None:
        """An editable installation puts the checkout on the path, where Twisted finds plugins."""
        with ZipFile(self.build("editable", self.source)) as wheel:
            [path] = [name for name in wheel.namelist() if name.endswith(".pth")]
            self.assertEqual(wheel.read(path).decode().strip(), str(self.source))

    def test_spaces(self) -> None:
        """The Makefile quotes the path of the checkout wherever a shell reads it."""
        text = (self.source / "Makefile").read_text()
        for line in re.findall("^\t.*", text, re.MULTILINE):
            for match in re.finditer(r"\$\((?:BIN|CURDIR)\)", line):
                self.assertEqual(line[match.start() - 1], '"', line)
