"""
C{ccproxyctl check-config}: whether the daemon could use a configuration file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..config import file as config
from ..config.machine import checkMachine
from ..config.options import configured
from ..config.settings import BadSetting, settingsOf
from ..errors import CCProxyError
from .output import say, write


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = argparse.ArgumentParser(
        prog="ccproxyctl check-config",
        description="Check a configuration file as the daemon would, and print what it sets.",
        epilog="Exit status: 0; 1 if the daemon could not use the file, or the output could not be "
        "written; 2 for a bad option.",
    )
    parser.add_argument(
        "path",
        nargs="?",
        metavar="FILE",
        help=f"the configuration file (default: {config.DEFAULT_FILE}, where it is there)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{check-config}.
    @return: the exit status.
    """
    options = makeParser().parse_args(arguments)
    path = config.findConfig(options.path)
    try:
        settings = settingsOf(configured(path) if path else {})
        checkMachine(settings)
    except BadSetting as problem:
        say(f"ccproxyctl check-config: {path}: {problem}")
        return 1
    except CCProxyError as problem:
        say(f"ccproxyctl check-config: {problem}")
        return 1
    if not options.quiet:
        missing = f"{config.DEFAULT_FILE} is not there: the defaults hold"
        found = f"{path}: good" if path else missing
        lines = [f"  {name} = {value}" for name, value in settings.differences().items()]
        write("\n".join([found, *lines, ""]))
    return 0
