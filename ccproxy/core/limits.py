"""
Every bound and every deadline of the proxy, with its default: docs/operations, "Limits".
"""

from __future__ import annotations

from typing import Any

import attrs

KIB = 1 << 10
MIB = 1 << 20

#: The greatest number of a limit without one of its own: every format holds it exactly.
MAX_COUNT = (1 << 53) - 1
#: Seconds, some 30 years: the longest deadline, which every timer of the system can take.
MAX_SECONDS = 1e9


def _limit(default: float, help: str, most: float | None = None, least: float = 1) -> Any:
    """
    A field of L{Limits}.

    @param help: what it bounds, for C{--help} and the operations guide.
    @param least: the lowest value that makes sense.
    @param most: the highest one, by default L{MAX_COUNT} or L{MAX_SECONDS}.
    """
    kind = type(default)
    if most is None:
        most = MAX_COUNT if kind is int else MAX_SECONDS
    return attrs.field(
        default=default, metadata={"help": help, "least": least, "most": most, "kind": kind}
    )


@attrs.frozen
class Limits:
    """
    The bounds. Counts and bytes are whole numbers, times are seconds.

    Each field's C{metadata} has its C{help} text, its C{kind} and its C{least} and C{most} value.
    """

    maxClients: int = _limit(16384, "client connections at a time")
    maxVMs: int = _limit(2048, "VMs known at a time, lost ones included")
    maxTokens: int = _limit(4096, "I/O tokens of one VM")
    maxCommands: int = _limit(256, "control commands waiting for one VM's agent")
    maxUnanswered: int = _limit(128, "unanswered commands of one client before it is not read")
    maxFrame: int = _limit(MIB, "bytes of payload in a client frame", least=4 * KIB)
    maxMessage: int = _limit(MIB, "bytes of a message from an agent", least=16 * KIB)
    sessionBuffer: int = _limit(MIB, "bytes kept per session and direction", least=4 * KIB)
    totalBuffer: int = _limit(
        256 * MIB,
        "bytes kept for all sessions; beyond it, each has --crowded-buffer",
        least=KIB,
    )
    crowdedBuffer: int = _limit(
        64 * KIB, "bytes kept per session and direction beyond --total-buffer", least=KIB
    )
    clientBuffer: int = _limit(MIB, "unsent bytes of a client before it is not read", least=KIB)
    consoleBuffer: int = _limit(64 * KIB, "bytes kept of what each VM's console said", least=KIB)
    readyTimeout: float = _limit(30.0, "seconds to wait for an agent's READY", least=0.1)
    readyPing: float = _limit(
        3.0, "seconds of silence after which an agent is asked ping instead of READY", least=0.01
    )
    commandTimeout: float = _limit(
        600.0, "seconds to wait for an agent's answer to a command; 0 is for ever", least=0
    )
    commandWarning: float = _limit(
        30.0, "seconds after which an unanswered command is reported", least=0.1
    )
    shimTimeout: float = _limit(30.0, "seconds that a start waits for its shim", least=0.1)
    processTimeout: float = _limit(
        30.0, "seconds that a signal waits for its process to be started", least=0.1
    )
    undeliveredTimeout: float = _limit(
        30.0, "seconds that a session with undelivered output outlives its VM", least=0
    )
    absentTimeout: float = _limit(
        30.0, "seconds that a full session without a shim holds up its VM's output", least=0
    )
    stalledWarning: float = _limit(
        10.0, "seconds after which a shim that does not read is reported", least=0.1
    )
    stalledDrop: float = _limit(
        0.0, "seconds after which its output is dropped instead; 0 is never", least=0
    )
    exitTimeout: float = _limit(
        5.0, "seconds that an exit event waits for the end of the output", least=0
    )
    lostTimeout: float = _limit(
        3600.0, "seconds after which a lost VM that nobody unregisters is forgotten", least=1
    )
    tokenTimeout: float = _limit(
        120.0, "seconds before an unclaimed token may be freed for another", least=0
    )
    stopTimeout: float = _limit(5.0, "seconds that a stop waits for what is under way", least=0)
    podTimeout: float = _limit(
        60.0, "seconds after UnregisterVM that pod mode ends at the latest", least=0
    )
    podIdleTimeout: float = _limit(
        300.0,
        "seconds with no living VM and no client after which pod mode ends; 0 is never",
        least=0,
    )
