"""
How a command of C{ccproxyctl} runs: its reactor, and its end.

Exit statuses: what the command itself says, such as a process's own status; L{FAILURE} for an
error of C{ccproxyctl}; 2 for words on its command line that it does not understand.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ..errors import CCProxyError
from ..shim.signals import Wakeup
from .output import say

#: The exit status of an error that is not the process's.
FAILURE = 125


def runReactor(command: str, work: Callable[[Any], Coroutine[Any, Any, int]]) -> int:
    """
    Run a command's work in the reactor.

    The reactor's own signal handlers stay out of it: most signals are meant for somebody else.

    @param command: the command's name, for messages.
    @param work: called with the reactor.
    @return: the exit status.
    """
    from twisted.internet import reactor as anyReactor
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from ..net.monotonic import useMonotonicTime

    reactor: Any = anyReactor
    useMonotonicTime(reactor)
    results: list[int | Failure] = []

    def done(result: int | Failure) -> None:
        results.append(result)
        reactor.stop()

    def start() -> None:
        Deferred.fromCoroutine(work(reactor)).addBoth(done)

    reactor.callWhenRunning(start)
    with Wakeup(reactor):
        reactor.run(installSignalHandlers=False)
    [result] = results
    if isinstance(result, int):
        return result
    if result.check(CCProxyError):
        say(f"ccproxyctl {command}: {result.getErrorMessage()}")
    else:
        say(result.getTraceback())
    return FAILURE
