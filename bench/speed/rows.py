"""
What is measured, and what is to be reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

#: Who can be between the peers: the proxy, a relay that does nothing else, and C{socat}.
PROXY, RELAY, SOCAT = SUBJECTS = ("ccproxy", "relay", "socat")
#: The proxy once more, under a supervisor: it keeps a journal that outlives a crash.
KEPT = "kept"
_ALL = (PROXY, KEPT, RELAY, SOCAT)


@attrs.frozen
class Target:
    """
    What a row is to reach.

    @ivar measure: of what, see L{bench.speed.results.measures}.
    @ivar most: the bound, in the measure's unit, or in times the relay's.
    @ivar relative: whether it is in times the relay's.
    @ivar historic: what the historic proxy needed, in words.
    """

    measure: str
    most: float
    relative: bool = False
    historic: str = ""


@attrs.frozen
class Row:
    """
    One run of the load generator.

    @ivar name: its name in the results.
    @ivar title: what it is, for readers.
    @ivar scenario: the load generator's scenario.
    @ivar options: the load generator's options.
    @ivar subjects: who is measured.
    @ivar targets: what is to be reached.
    @ivar fresh: whether the proxy must not have served anybody before.
    @ivar against: the row whose yardsticks are this row's, its own by default.
    """

    name: str
    title: str
    scenario: str
    options: Mapping[str, int | str] = {}
    subjects: tuple[str, ...] = (PROXY,)
    targets: tuple[Target, ...] = ()
    fresh: bool = False
    against: str = ""


#: Bytes of payload whose cost is plotted; hyperstart's longest message has 10228.
SIZES = (1, 32, 128, 512, 1024, 2048, 4096, 8192)
#: Bytes that a run of bulk carries, and the most frames.
BULK, MOST_FRAMES = 128 << 20, 600_000
#: VMs up to which memory is plotted, and between two measurements.
MOST_VMS, STEP = 2000, 500

_STREAM_TARGETS = {
    "stdout-1": (Target("cpu_us", 0.3, historic="5 us"),),
    "stdout-512": (Target("cpu_us", 0.6, historic="5.5-6.8 us"),),
    "stdout-4096": (Target("cpu_us", 2.4, historic="26-28 us"),),
    "stdin-512": (Target("cpu_us", 1.5, historic="8.5 us, neither cut nor paced"),),
    "stdin-8192": (Target("cpu_us", 9, historic="27 us, neither cut nor paced"),),
}


def _streams() -> Iterator[Row]:
    for scenario in ("stdout", "stdin"):
        for size in SIZES:
            name = f"{scenario}-{size}"
            count = min(MOST_FRAMES, BULK // (size + 12))
            if scenario == "stdin":
                count //= 3
            options = {"size": size, "count": count}
            title = f"{scenario}, {size} byte{'s' * (size > 1)}, CPU per frame"
            targets = _STREAM_TARGETS.get(name, ())
            subjects = _ALL if targets else SUBJECTS
            yield Row(name, title, scenario, options, subjects, targets)


ROWS = (
    *_streams(),
    Row(
        "interleaved",
        "stdout, 512 bytes, 10 VMs with 10 shims, every frame to another session, CPU per frame",
        "stdout",
        {"size": 512, "count": 200_000, "vms": 10, "shims": 10},
        (PROXY, KEPT),
        targets=(Target("cpu_us", 1.4, historic="5.3 us"),),
        against="stdout-512",
    ),
    Row(
        "echo",
        "a keystroke and back",
        "echo",
        {"size": 1, "count": 5000},
        _ALL,
        (
            Target("p50", 1.1, True, "1.1 times"),
            Target("p99", 1.2, True),
            Target("cpu_us", 1.4, True, "1.9 times"),
        ),
    ),
    Row(
        "echo-200",
        "a keystroke and back, 200 a second",
        "echo",
        {"size": 1, "count": 500, "rate": 200},
        (PROXY, RELAY),
        (Target("p50", 95, historic="100 us"),),
    ),
    Row(
        "ping",
        "Hyper ping",
        "ping",
        {"count": 5000},
        (PROXY, KEPT),
        targets=(
            Target("cpu_us", 50, historic="80-90 us"),
            Target("p50", 95, historic="108 us"),
        ),
        against="echo",
    ),
    Row(
        "setup",
        "500 VMs with 2 shims and 2 newcontainer, each",
        "setup",
        {"vms": 500, "shims": 2, "step": 500, "count": 0},
        targets=(
            Target("cpu_us", 600, historic="820 us"),
            Target("kib_per_vm", 16, historic="40 KiB"),
            Target("base_kib", 38 * 1024, historic="6 MiB"),
        ),
        fresh=True,
        against="echo",
    ),
    Row(
        "crowd",
        "a keystroke and back among 2000 VMs with 2 shims each",
        "setup",
        {"vms": MOST_VMS, "shims": 2, "step": STEP, "keep": 0, "size": 1, "count": 2000},
        targets=(Target("echo_times", 1.5),),
        fresh=True,
        against="echo",
    ),
    Row("start", "start until it accepts", "start", targets=(Target("cpu_us", 250_000),)),
    *(
        Row(
            f"fair-{flood}",
            f"a keystroke and back while {what}",
            "fair",
            {"vms": 2, "shims": 2, "size": 1, "count": 200, "rate": 100, "flood": flood},
            fresh=True,
        )
        for flood, what in (
            ("stdout", "the stdout of another VM floods"),
            ("stdin", "the stdin of another VM floods"),
            ("own", "the stdin of another process of the same VM floods"),
        )
    ),
)

_GROWTH = {"vms": 500, "step": 500, "keep": 0, "count": 0}

#: What one of each costs: runs whose growth is divided by how many there are.
COSTS = (
    Row("client", "a client", "clients", {"count": 1000}, fresh=True),
    *(
        Row(name, title, "setup", {**_GROWTH, **more}, fresh=True)
        for name, title, more in (
            ("vm", "a VM without tokens", {"shims": 0}),
            ("tokens", "the same with 4 tokens", {"shims": 4, "depth": 0}),
            ("shims", "and with 4 shims", {"shims": 4, "depth": 1}),
            ("processes", "and with 4 processes", {"shims": 4}),
        )
    ),
)
