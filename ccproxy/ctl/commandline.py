"""
What a command line may say, read out of its argparse parser: for completion and documentation.

argparse has no public way to ask a parser for its options, so its C{_actions} are used, here alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import attrs


@attrs.frozen
class Word:
    """
    An option, or an argument without one.

    @ivar names: what the option is called, such as C{-f} and C{--follow}; none for an argument.
    @ivar help: what it does, on one line.
    @ivar value: what its value is called; empty if it takes none.
    @ivar choices: the values that there are, if not any will do.
    @ivar repeats: whether it can be given more than once.
    """

    names: tuple[str, ...]
    help: str
    value: str
    choices: tuple[str, ...]
    repeats: bool


def wordsOf(parser: argparse.ArgumentParser) -> Iterator[Word]:
    """All that may be said, in the order of C{--help}, without what is not documented."""
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
            continue
        help = parser._get_formatter()._expand_help(action) if action.help else ""
        value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        yield Word(
            tuple(action.option_strings),
            " ".join(help.split()),
            "" if action.nargs == 0 else value,
            tuple(map(str, action.choices or ())),
            isinstance(action, argparse._AppendAction)
            or action.nargs in (argparse.ZERO_OR_MORE, argparse.ONE_OR_MORE, argparse.REMAINDER),
        )


def withSubcommands(
    name: str, help: str, parser: argparse.ArgumentParser
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """
    A command and its own commands: what is typed to get there, what it does, and its parser.
    """
    yield name, help, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for sub, subparser in action.choices.items():
                yield from withSubcommands(f"{name} {sub}", helps.get(sub, ""), subparser)
