"""
The results for readers: tables as text and for docs/performance, and plots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .results import UNITS, Results, Verdict, keptTimes, ratio, reached
from .rows import COSTS, KEPT, PROXY, RELAY, ROWS, SIZES, SOCAT, SUBJECTS
from .svg import Axis, plot

#: Who is idle for more than this part of the time is not the limit. Both can be, where each waits
#: for the other, or for a processor that others use.
IDLE = 0.1

Table = Sequence[Sequence[str]]


def number(value: float) -> str:
    """With three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _value(measure: str, value: float) -> str:
    if value >= 10_000 and measure not in UNITS:
        return f"{number(value / 1000)} ms"
    if measure == "base_kib":
        return f"{number(value / 1024)} MiB"
    return f"{number(value)} {UNITS.get(measure, 'us')}"


_MEASURES = {
    "cpu_us": "CPU", "p50": "p50", "p99": "p99", "kib_per_vm": "memory", "base_kib": "base",
    "echo_times": "p50, in times that with one VM",
}  # fmt: skip


def targets(results: Results) -> Table:
    """The table of all that is to be reached."""
    lines = [["scenario", "historic", "to reach", "measured", "relay", "socat", ""]]
    for row in (row for row in ROWS if row.name in results):
        for target in row.targets:
            verdict = reached(row, target, results)
            found = results[row.name][PROXY].get(target.measure)
            if verdict is None or found is None:
                continue
            most = number(target.most) + " times the relay's"
            yardsticks = [
                results.get(row.against or row.name, {}).get(subject, {}).get(target.measure)
                for subject in (RELAY, SOCAT)
            ]
            ratios = [ratio(row, results, target.measure, subject) for subject in (RELAY, SOCAT)]
            lines.append(
                [
                    f"{row.title}: {_MEASURES[target.measure]}",
                    target.historic,
                    most if target.relative else _value(target.measure, target.most),
                    _value(target.measure, found),
                    *(
                        f"{number(value)} us (x {number(times)})" if value and times else ""
                        for value, times in zip(yardsticks, ratios, strict=True)
                    ),
                    _verdict(verdict),
                ]
            )
    return lines


def _verdict(verdict: Verdict) -> str:
    return "met" if verdict.good else f"{number(verdict.found / verdict.most)} times too much"


def limits(results: Results) -> Table:
    """How busy both sides were in the rows of bulk, and which one was the limit."""
    lines = [["scenario", "of", "frames/s", "its CPU", "load's CPU", "limit"]]
    for row in (row for row in ROWS if row.name in results and row.scenario in ("stdout", "stdin")):
        for subject, found in results[row.name].items():
            idle = found["busy"] < 1 - IDLE
            limit = subject
            if idle:
                limit = "the load generator" if found["load_busy"] > 1 - IDLE else "neither"
            part = [f"{100 * found[key]:.0f} %" for key in ("busy", "load_busy")]
            lines.append([row.name, subject, f"{1e6 / found['wall_us']:.0f}", *part, limit])
    return lines


def fairness(results: Results) -> Table:
    """What a keystroke waits for."""
    lines = [["a keystroke and back", "p50", "p90", "p99", "longest"]]
    rows = [row for row in ROWS if row.name in results]
    for row in (row for row in rows if row.name == "echo-200" or row.name.startswith("fair")):
        latency = results[row.name][PROXY]["latency_us"]
        last = len(latency) - 1
        chosen = [latency[last * part // 100] for part in (50, 90, 99, 100)]
        lines.append([row.title, *(_value("p50", value) for value in chosen)])
    return lines


def memory(results: Results) -> Table:
    """What one of each costs."""
    lines = [["", "memory of one", "more than the line above"]]
    before = None
    for row in (row for row in COSTS if row.name in results):
        found = results[row.name][PROXY]["pss_kib"]
        cost = (found[-1] - found[0]) / int(row.options.get("vms", row.options.get("count", 1)))
        more = "" if before is None else f"{cost - before:.1f} KiB"
        lines.append([row.title, f"{cost:.1f} KiB", more])
        before = cost if row.scenario == "setup" else None
    return lines


def kept(results: Results) -> Table:
    """What a journal costs that outlives a crash."""
    lines = [["scenario", "without a journal", "with one", "times"]]
    for row in (row for row in ROWS if row.name in results):
        for target in row.targets:
            times = keptTimes(row, results, target.measure)
            if times is not None:
                found = (results[row.name][each][target.measure] for each in (PROXY, KEPT))
                values = (_value(target.measure, value) for value in found)
                what = f"{row.title}: {_MEASURES[target.measure]}"
                lines.append([what, *values, f"{times:.2f}"])
    return lines


def plots(results: Results) -> Iterator[tuple[str, str]]:
    """The name of each plot, and the plot."""
    lines = [
        (f"{subject}, {scenario}" if subject == PROXY else subject, points)
        for scenario in ("stdout", "stdin")
        for subject in SUBJECTS
        if (points := _overSizes(results, scenario, subject))
        and (subject == PROXY or scenario == "stdout")
    ]
    if lines:
        yield (
            "frames.svg",
            plot("CPU per frame", Axis("bytes of payload", True), Axis("us of CPU", True), lines),
        )
    lines = [
        (subject, [(value, 100 * n / len(latency)) for n, value in enumerate(latency[:-1])])
        for subject, found in results.get("echo", {}).items()
        if subject in SUBJECTS and (latency := found["latency_us"])
    ]
    if lines:
        yield (
            "echo.svg",
            plot(
                "A keystroke and back",
                Axis("us", True),
                Axis("% that are back by then", least=0),
                lines,
            ),
        )
    if "crowd" in results:
        row = next(row for row in ROWS if row.name == "crowd")
        found, step = results["crowd"][PROXY]["pss_kib"], int(row.options["step"])
        points = [(float(step * n), kib / 1024) for n, kib in enumerate(found)]
        yield "memory.svg", plot(
            "Memory", Axis("VMs with 2 shims each"), Axis("MiB (PSS)", least=0), [(PROXY, points)]
        )  # fmt: skip


def _overSizes(results: Results, scenario: str, subject: str) -> list[tuple[float, float]]:
    found = [(size, results.get(f"{scenario}-{size}", {}).get(subject)) for size in SIZES]
    return [(float(size), each["cpu_us"]) for size, each in found if each]


def asText(table: Table) -> str:
    """A table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    return "\n".join([rows[0], "-" * sum(widths), *rows[1:], ""])


def asRST(table: Table) -> str:
    """A table in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in table:
        lines += [f"   {' ' if n else '*'} - {cell}".rstrip() for n, cell in enumerate(row)]
    return "\n".join([*lines, ""])


def tables(results: Results) -> Iterator[tuple[str, Table]]:
    """The name of each table, and the table, but for those with nothing in them."""
    made = {
        "targets": targets(results),
        "limits": limits(results),
        "fairness": fairness(results),
        "kept": kept(results),
        "memory": memory(results),
    }
    return ((name, table) for name, table in made.items() if len(table) > 1)


def verdicts(found: Iterable[Verdict]) -> Table:
    """The table of what C{make bench-check} has found."""
    lines = [["figure", "found", "at most", ""]]
    for each in found:
        last = "" if each.good else "TOO MUCH"
        lines.append([each.what, number(each.found), number(each.most), last])
    return lines


def write(folder: Path, results: Results, facts: Mapping[str, Any]) -> None:
    """
    Write all tables and plots, for docs/performance to include.

    @param facts: what they were found on, and how.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in plots(results):
        (folder / name).write_text(text)
    for name, table in tables(results):
        (folder / f"{name}.inc").write_text(asRST(table))
    about = [f":{key}: {value}" for key, value in facts.items()]
    (folder / "machine.inc").write_text("\n".join([*about, ""]))
