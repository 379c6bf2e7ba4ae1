"""
The fuzz targets over the corpus that is in the repository: what fuzzing has found once stays
found, without a fuzzer.

The targets and the corpus are no part of the package. They are found beside it, or where
C{CCPROXY_SOURCE} says that the sources are.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import ccproxy


def _folder() -> Path:
    """
    Where the targets are.

    @raise SkipTest: they are not here.
    """
    source = os.environ.get("CCPROXY_SOURCE") or Path(ccproxy.__file__).parent.parent
    folder = Path(source) / "fuzz"
    if not (folder / "targets.py").exists():
        raise SkipTest(f"there are no fuzz targets in {folder}; CCPROXY_SOURCE names the sources")
    return folder


def _targets(folder: Path) -> Mapping[str, Callable[[bytes], None]]:
    if "fuzz" not in sys.modules:
        # By its place and not by the path for modules, where the sources would hide the package
        # that is tested.
        spec = importlib.util.spec_from_file_location(
            "fuzz", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules["fuzz"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    targets: Mapping[str, Callable[[bytes], None]] = importlib.import_module("fuzz.targets").TARGETS
    return targets


class CorpusTests(SynchronousTestCase):
    """No input of the corpus breaks its target."""

    def test_everyTargetHolds(self) -> None:
        """Each target takes each input that is kept for it, and there is one."""
        folder = _folder()
        for name, target in _targets(folder).items():
            paths = sorted((folder / "corpus" / name).iterdir())
            self.assertTrue(paths, f"nothing in the corpus of {name}")
            for path in paths:
                try:
                    target(path.read_bytes())
                except Exception as error:
                    raise AssertionError(f"fuzz/corpus/{name}/{path.name}: {error!r}") from error

    def test_noStrangers(self) -> None:
        """There is a target for each folder of the corpus."""
        folder = _folder()
        corpus = {path.name for path in (folder / "corpus").iterdir()}
        self.assertEqual(corpus, set(_targets(folder)))
