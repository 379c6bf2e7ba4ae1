"""
C{python -m bench.speed}: run it, and say what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import report
from .results import check, derive, machine, measures, medians
from .rows import COSTS, ROWS, Row
from .running import APART, PLACES, Bench, Failed

HERE = Path(__file__).resolve().parent
BOUNDS = HERE / "bounds.toml"
#: The part of the processors that others may use before it is said.
QUIET = 0.1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--programs", type=Path, required=True, help="where load and relay are")
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many (default: 5)")
    parser.add_argument("--rows", default="", help="only these: A,B,... or patterns as stdout-*")
    parser.add_argument("--output", type=Path, help="a folder for results, tables and plots")
    parser.add_argument("--processors", choices=PLACES, default=APART, help="who runs where")
    parser.add_argument("--check", action="store_true", help="only compare with bounds.toml")
    parser.add_argument("--list", action="store_true", help="say which rows there are")
    return parser.parse_args()


def _chosen(options: argparse.Namespace, bounds: Sequence[str]) -> list[Row]:
    """The rows to run."""
    rows = [*ROWS, *COSTS]
    if options.check:
        wanted = {other for row in rows if row.name in bounds for other in (row.name, row.against)}
        rows = [row for row in rows if row.name in wanted]
    if options.rows:
        patterns = options.rows.split(",")
        rows = [row for row in rows if any(fnmatch(row.name, each) for each in patterns)]
    return rows


def _othersUse(seconds: float) -> float:
    """The part of the processors that is used now, when nothing of ours runs."""

    def times() -> tuple[int, int]:
        found = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return sum(found[3:5]), sum(found[:8])

    idle, total = times()
    time.sleep(seconds)
    idleThen, totalThen = times()
    return 1 - (idleThen - idle) / max(1, totalThen - total)


def _run(rows: Sequence[Row], rounds: int, bench: Bench) -> dict[str, dict[str, dict[str, Any]]]:
    """Run all rows, as often as there are rounds: what lasts for a while meets all of them."""
    samples: dict[tuple[str, str], list[dict[str, Any]]] = {}
    total = rounds * sum(len(row.subjects) for row in rows)
    for _ in range(rounds):
        for row in rows:
            for subject in row.subjects:
                samples.setdefault((row.name, subject), []).append(
                    measures(bench.run(row, subject))
                )
                done = sum(map(len, samples.values()))
                if sys.stderr.isatty():
                    print(f"\r{done} of {total}: {row.name:<20}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r" + " " * 40, end="\r", file=sys.stderr)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, subject), found in samples.items():
        results.setdefault(name, {})[subject] = medians(found)
    derive(rows, results)
    return results


def main() -> int:
    """
    Run the command.

    @return: the exit status: 0, 1 if a bound is not kept, 2 if something cannot be measured.
    """
    options = _options()
    bounds = tomllib.loads(BOUNDS.read_text())
    rows = _chosen(options, list(bounds))
    if options.list:
        print("\n".join(f"{row.name:<16} {row.title}" for row in rows))
        return 0
    if not shutil.which("socat"):
        print("socat, one of the yardsticks, is not installed", file=sys.stderr)
        return 2
    others = _othersUse(1)
    facts = {
        **machine(),
        "processors": f"{len(os.sched_getaffinity(0))}, {options.processors}",
        "used by others": f"{100 * others:.0f} %",
        "medians of runs": options.rounds,
    }
    if others > QUIET:
        print(f"the machine is not quiet: others use {others:.0%} of it", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        bench = Bench(options.programs, Path(folder), options.processors)
        try:
            results = _run(rows, options.rounds, bench)
        except Failed as problem:
            print(f"bench: {problem}", file=sys.stderr)
            return 2
        finally:
            bench.close()
    if options.output:
        report.write(options.output, results, facts)
        text = json.dumps({"machine": facts, "rows": results}, indent=1)
        (options.output / "results.json").write_text(text + "\n")
    if options.check:
        try:
            verdicts = list(check(rows, results, bounds))
        except KeyError as problem:
            print(f"bench: {BOUNDS}: {problem.args[0]}", file=sys.stderr)
            return 2
        print(report.asText(report.verdicts(verdicts)))
        bad = sum(not verdict.good for verdict in verdicts)
        print(f"bench-check: {bad} of {len(verdicts)} figures are beyond their bounds")
        return min(bad, 1)
    for _, table in report.tables(results):
        print(report.asText(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
