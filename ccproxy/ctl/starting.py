"""
Starting a process in a VM and attending it: what C{run} and C{exec} share.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from ..errors import CCProxyError, ProxyError
from ..net.client import IOStreams, ProxyClient
from ..shim.attending import Shim
from ..shim.guard import Guard
from ..shim.local import LocalShim, reach
from ..shim.signals import forCommands, nameOf
from ..shim.stdio import secureDescriptors
from ..wire.starts import Process
from .running import FAILURE, runReactor

#: How long to wait for the proxy's answer to AttachVM, in seconds.
ATTACH_TIMEOUT = 30.0
#: How long to wait for the start, in seconds; the proxy's own deadline is shorter.
START_TIMEOUT = 660.0
#: Where programs are searched, if C{--env} does not say it.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: The longest value that is passed on unasked, in characters.
MAX_VARIABLE = 256
_TERMINAL_VARIABLE = re.compile("TERM|COLORTERM|LANG|LC_[A-Z]{1,32}")
_TERMINAL_EOF = b"\x04"
#: Signals that say nothing to most processes: not worth a word.
_HARMLESS = {signal.SIGWINCH, signal.SIGCONT, signal.SIGURG}
#: How an error ends for which the agent gave no reason.
_NO_REASON = "control msg received : "


class NotStarted(CCProxyError):
    """The process could not be started."""


def terminalVariables(environment: Mapping[str, str]) -> dict[str, str]:
    """
    Return the variables that a process with our terminal needs to use it well.

    They say what the terminal is and how it encodes characters, as ssh passes them on. Values that
    no terminal or locale has are left out: long ones, and those with control characters or bytes
    that are not UTF-8.
    """
    return {
        name: value
        for name, value in environment.items()
        if _TERMINAL_VARIABLE.fullmatch(name)
        and len(value) <= MAX_VARIABLE
        and value.isprintable()
    }


def describeProcess(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Process:
    """
    The process that the command line asks for.

    @param parser: reports what is missing, and exits.
    """
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not words or not words[0]:
        parser.error("which program? Its name comes last, such as: -- sh -c 'echo hello'")
    env = {"PATH": DEFAULT_PATH}
    if options.tty:
        env.update(terminalVariables(os.environ))
    env.update(options.env)
    return Process.make(words, env, options.workdir, options.tty)


def runProcess(
    command: str,
    options: argparse.Namespace,
    hyperName: str,
    data: object,
    ended: Callable[[ProxyClient], Deferred[Any]] | None = None,
    advice: Callable[[str], str] = lambda reason: "",
) -> int:
    """
    Start a process, be its shim until it ends, and clean up.

    @param command: the name of our own command, for messages.
    @param hyperName: the command that starts the process.
    @param data: the command's data.
    @param ended: called with a connection that is attached to the VM, after the process's end.
    @param advice: says what to do about a failed start, after its reason.
    @return: the exit status.
    """
    secureDescriptors()
    guard = Guard()

    async def work(reactor: Any) -> int:
        with LocalShim(reactor, options.path, options.tty, forCommands()) as local:
            local.shim.refused = _Refusal(local)
            if options.tty and not os.isatty(0):
                local.shim.endOfInput = _TERMINAL_EOF
            starting = Deferred.fromCoroutine(
                _start(reactor, options, hyperName, data, guard, local.shim, advice)
            )

            left = False

            def insisted() -> None:
                nonlocal left
                left = local.shim.giveUp(128 + signal.SIGINT)
                if left:
                    local.tell("ended by a second Ctrl-C; the process in the VM may run on")
                    starting.cancel()

            local.insisted = insisted
            try:
                await starting
            except CancelledError:
                pass
            else:
                local.takeTerminal()
            status = await local.shim.finished
            if ended is not None and not left:
                await _cleanUp(reactor, options, ended, local.tell)
            await local.settle()
        return FAILURE if local.lost and not status else status

    try:
        return runReactor(command, work)
    finally:
        guard.dismiss()


class _Refusal:
    """
    What happens with signals that can't be delivered.

    They are reported; a second one of the same kind ends our side alone, since nobody shall need
    SIGKILL to get out. SIGPIPE, which comes once, does so at once.
    """

    def __init__(self, local: LocalShim) -> None:
        self._local = local
        self._known = {int(signal.SIGPIPE)}

    def __call__(self, number: int, error: CCProxyError) -> None:
        if number in _HARMLESS:
            return
        text = f"{nameOf(number)} was not delivered: {error}"
        if number in self._known:
            self._local.tell(f"{text}; ending, though the process in the VM may run on")
            self._local.shim.giveUp(128 + number)
        else:
            self._local.tell(f"{text}; the same signal again ends ccproxyctl alone")
        self._known.add(number)


async def _start(
    reactor: Any,
    options: argparse.Namespace,
    hyperName: str,
    data: object,
    guard: Guard,
    shim: Shim,
    advice: Callable[[str], str],
) -> None:
    client: ProxyClient = await reach(reactor, options.path)
    try:
        token = await _allocate(client, options)
        guard.watch(options.path, token)
        await shim.connect(token)
        try:
            await client.hyper(hyperName, data, [token], START_TIMEOUT)
        except CCProxyError as error:
            # The start is what failed, whatever becomes of its shim.
            shim.finished.addErrback(lambda ignored: None)
            await shim.leave()
            reason = str(error)
            if reason.endswith(_NO_REASON):
                reason += "nothing; is its pod started, and the container's name new?"
            raise NotStarted(
                f"{options.process.args[0]} could not be started: {reason}{advice(reason)}"
            ) from None
    finally:
        client.stopProducing()


async def _cleanUp(
    reactor: Any,
    options: argparse.Namespace,
    ended: Callable[[ProxyClient], Deferred[Any]],
    tell: Callable[[str], None],
) -> None:
    try:
        client: ProxyClient = await reach(reactor, options.path)
        try:
            await client.attachVM(options.vm, timeout=ATTACH_TIMEOUT)
            await ended(client)
        finally:
            client.stopProducing()
    except CCProxyError as error:
        # hyperstart gives no reason, and 1.x refuses always, which helps nobody to know.
        if not str(error).endswith(_NO_REASON):
            tell(f"something may be left in the VM {options.vm!r}: {error}")


async def _allocate(client: ProxyClient, options: argparse.Namespace) -> str:
    """A token for one process."""
    try:
        streams: IOStreams = await client.attachVM(options.vm, 1, ATTACH_TIMEOUT)
    except ProxyError as error:
        if "unknown containerID" in str(error):
            raise NotStarted(
                f"the proxy at {options.path} knows no VM {options.vm!r}: "
                "name one that is registered with --vm"
            ) from None
        raise
    if len(streams.tokens) != 1:
        raise NotStarted(f"the proxy gave {len(streams.tokens)} tokens instead of one")
    return streams.tokens[0]
