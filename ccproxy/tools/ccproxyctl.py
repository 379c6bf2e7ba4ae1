"""
C{ccproxyctl}: the command line beside the daemon.

Each command is a module with a C{main}, which takes the words after the command's name and gives
the exit status. Only the module of the command that is asked for is imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__

#: The module of each command, and what the command does.
COMMANDS = {
    "run": ("run", "start a container in a VM, connected to this terminal"),
    "exec": ("exec", "start one more process in a running container"),
    "shim": ("shim", "stand for a process in a VM, as a runtime's shim"),
    "demo": ("demo", "start a proxy with an embedded VM, for one command in it"),
}


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:<8}{help}" for name, (_, help) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="ccproxyctl",
        usage="ccproxyctl COMMAND [OPTION...]",
        description="Run processes in the VMs of a proxy, and look after the proxy.",
        epilog=f"commands:\n{commands}\n\nccproxyctl COMMAND --help says more about each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ccproxyctl {__version__}")
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    @param arguments: the command line without the program's name, our own by default.
    @return: the exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] not in COMMANDS:
        # Prints help, version or an error, and exits.
        _parser().parse_args(words[:1])
    module = import_module(f"{__package__}.{COMMANDS[words[0]][0]}")
    status: int = module.main(words[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
