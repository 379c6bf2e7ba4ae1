"""
What the runs have found: medians, ratios, and whether they are what they have to be.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrs

import twisted

from .rows import KEPT, PROXY, RELAY, SUBJECTS, Row, Target

#: What was found about each subject of each row: a number for each measure, and lists.
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]

#: The unit of each measure that is no time in microseconds.
UNITS = {"kib_per_vm": "KiB per VM", "base_kib": "KiB", "echo_times": "times", "load_busy": ""}


def measures(sample: Mapping[str, Any]) -> dict[str, Any]:
    """
    What one run says: C{cpu_us} and C{wall_us} for each operation, the parts C{busy} and
    C{load_busy} of a processor that were used, the latencies' C{p50}, C{p99} and C{most} in
    microseconds, the memory's C{base_kib} and C{kib_per_vm}.
    """
    found = {key: value for key, value in sample.items() if key not in ("ok", "echo")}
    latency = sample.get("latency_us")
    if latency:
        last = len(latency) - 1
        found |= {"p50": latency[last // 2], "p99": latency[last * 99 // 100], "most": latency[-1]}
    if "echo" in sample:
        found |= {f"echo_{key}": value for key, value in measures(sample["echo"]).items()}
    return found


def medians(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each measure of several runs, and that of each place of a list."""
    found: dict[str, Any] = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        if isinstance(values[0], list):
            found[key] = [median(column) for column in zip(*values, strict=True)]
        else:
            found[key] = median(values)
    return found


def derive(rows: Iterable[Row], results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Add the measures that follow from others."""
    for row in rows:
        own = results[row.name].get(PROXY, {})
        memory = own.get("pss_kib")
        if memory and "vms" in row.options:
            own["base_kib"] = memory[0]
            own["kib_per_vm"] = (memory[-1] - memory[0]) / int(row.options["vms"])
        if "echo_p50" in own and "echo" in results:
            own["echo_times"] = own["echo_p50"] / results["echo"][PROXY]["p50"]


def ratio(row: Row, results: Results, measure: str, subject: str) -> float | None:
    """How many times a yardstick's measure the proxy's is, or L{None} where there is none."""
    yardstick = results.get(row.against or row.name, {}).get(subject, {}).get(measure)
    return results[row.name][PROXY][measure] / yardstick if yardstick else None


def keptTimes(row: Row, results: Results, measure: str) -> float | None:
    """How many times as much it is with a journal, or L{None} where that was not measured."""
    found = results[row.name].get(KEPT, {}).get(measure)
    return found / results[row.name][PROXY][measure] if found else None


@attrs.frozen
class Verdict:
    """
    Whether a figure is what it has to be.

    @ivar what: the figure.
    @ivar found: what was found.
    @ivar most: the bound.
    """

    what: str
    found: float
    most: float

    @property
    def good(self) -> bool:
        """Whether the bound is kept."""
        return self.found <= self.most


def check(
    rows: Iterable[Row], results: Results, bounds: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> Iterator[Verdict]:
    """
    Compare with bounds.

    @param bounds: for rows and their measures, the most that each may be: in times a yardstick's,
        or C{absolute}.
    @raise KeyError: a bound is for something that was not measured.
    """
    known = {row.name: row for row in rows}
    for name, ofRow in bounds.items():
        for measure, ofMeasure in ofRow.items():
            for subject, most in ofMeasure.items():
                if subject == KEPT:
                    found = keptTimes(known[name], results, measure)
                    what = f"{name} {measure} with a journal, in times that without"
                elif subject in SUBJECTS:
                    found = ratio(known[name], results, measure, subject)
                    what = f"{name} {measure}, in times the {subject}'s"
                else:
                    found = results[name][PROXY][measure]
                    what = f"{name} {measure}"
                if found is None:
                    raise KeyError(f"{what} was not measured")
                yield Verdict(what, found, most)


def reached(row: Row, target: Target, results: Results) -> Verdict | None:
    """What became of a target, or L{None} if it was not measured."""
    found = results[row.name][PROXY].get(target.measure)
    if target.relative:
        found = ratio(row, results, target.measure, RELAY)
    return None if found is None else Verdict(row.title, found, target.most)


def machine() -> dict[str, str]:
    """What the figures were found on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "twisted": twisted.__version__,
    }
