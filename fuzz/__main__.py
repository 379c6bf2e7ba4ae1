"""
C{python -m fuzz}: run the fuzz targets guided by coverage, or replay inputs.

What a run finds is kept in C{fuzz/found} and is where the next run begins; an input that breaks a
target is kept in C{fuzz/crashes}. Neither belongs to the repository: an input worth keeping goes
to C{fuzz/corpus/TARGET}.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
CORPUS, FOUND, CRASHES = HERE / "corpus", HERE / "found", HERE / "crashes"
#: Part of the time that the first target gets.
SHARE_OF_FIRST = 0.4
#: Seconds after which an input counts as a hang, and megabytes after which it counts as a leak.
HANG, MEMORY = 20, 1024
#: How many characters of a broken target's output are shown.
MOST_SHOWN = 4000
NO_ATHERIS = (
    "fuzz: atheris is not installed, so nothing was fuzzed. It comes as a wheel for some versions"
    " of Python only; this is {version}.\n"
    "fuzz: try another (make fuzz PYTHON=python3.12 VENV=.venv-fuzz), or replay the corpus, which"
    " needs no atheris: make test TESTS=ccproxy.test.test_fuzz_corpus"
)

FOUND_ONE = (
    "fuzz: the input is in {path}; replay it with\n    python -m fuzz replay {path}\n"
    "fuzz: once it is mended, move it to fuzz/corpus/{name}/"
)


def one(name: str, arguments: Sequence[str]) -> None:
    """
    Let libFuzzer run one target; it ends the process itself.

    @param arguments: libFuzzer's.
    """
    import atheris

    with atheris.instrument_imports(include=["ccproxy"], exclude=["ccproxy.test"]):
        from .targets import TARGETS

    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


def run(names: Sequence[str], seconds: float) -> int:
    """
    Run targets one after the other.

    @param seconds: for all of them together.
    @return: the exit status.
    """
    from .targets import TARGETS

    try:
        import atheris  # noqa: F401
    except ImportError:
        print(NO_ATHERIS.format(version=sys.version.split()[0]), file=sys.stderr)
        return 1
    names = names or list(TARGETS)
    weights = dict.fromkeys(names, 1.0)
    if len(names) > 1:
        weights[names[0]] = (len(names) - 1) * SHARE_OF_FIRST / (1 - SHARE_OF_FIRST)
    broken = []
    for name in names:
        share = max(1, round(seconds * weights[name] / sum(weights.values())))
        print(f"fuzz: {name}, for {share} s", flush=True)
        if not _fuzz(name, share):
            broken.append(name)
    print(f"fuzz: {len(names) - len(broken)} of {len(names)} targets held")
    return 1 if broken else 0


def _fuzz(name: str, seconds: int) -> bool:
    """Run one target in a process of its own; says what has broken it."""
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    CRASHES.mkdir(exist_ok=True)
    begun, output = time.time(), FOUND / f"{name}.log"
    command = [sys.executable, "-m", "fuzz", "one", name]
    command += [f"-max_total_time={seconds}", f"-timeout={HANG}", f"-rss_limit_mb={MEMORY}"]
    command += ["-print_final_stats=1", f"-artifact_prefix={CRASHES / name}-"]
    command += [str(found), str(CORPUS / name)]
    with output.open("wb") as log:
        result = subprocess.run(command, cwd=HERE.parent, stdout=log, stderr=log, check=False)
    text = output.read_text(errors="replace")
    if result.returncode == 0:
        inputs = re.findall(r"number_of_executed_units: (\d+)", text)
        print(f"fuzz: {name} has held for {''.join(inputs)} inputs", flush=True)
        return True
    print(f"{text[-MOST_SHOWN:]}\nfuzz: {name} broke; all of its output: {output}", file=sys.stderr)
    for path in sorted(CRASHES.glob(f"{name}-*")):
        if path.stat().st_mtime >= begun:
            print(FOUND_ONE.format(path=path, name=name), file=sys.stderr)
    return False


def replay(paths: Sequence[str]) -> None:
    """Run inputs, each with the target that its name or its folder begins with."""
    from .targets import TARGETS

    for path in map(Path, paths):
        name = path.parent.name if path.parent.name in TARGETS else path.name.partition("-")[0]
        print(f"fuzz: {name} with {path}")
        TARGETS[name](path.read_bytes())


def main() -> int:
    """
    Run the command.

    @return: the exit status.
    """
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz ccproxy.")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run targets, guided by coverage")
    running.add_argument("--time", type=float, default=600, help="seconds in all (default: 600)")
    running.add_argument("targets", nargs="*", help="their names (default: all)")
    replaying = commands.add_parser("replay", help="run inputs that were found")
    replaying.add_argument("files", nargs="+")
    options = parser.parse_args()
    if options.command == "run":
        return run(options.targets, options.time)
    replay(options.files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
