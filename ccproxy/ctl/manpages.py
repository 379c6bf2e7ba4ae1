"""
The manual pages, made of the same definitions as the command lines: C{make man}, C{make install}.

What is written here is only what those definitions do not have.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .. import __version__
from ..config.file import DEFAULT_FILE
from ..config.options import Options
from ..net.address import DEFAULT_ADMIN_SOCKET, DEFAULT_SOCKET
from ..service.ccproxy_command import FLAGS, LOG_LEVEL_VARIABLE
from . import ccproxyctl
from .asking import STATUSES
from .commandline import Word, withSubcommands, wordsOf

_SIGNALS = {
    "SIGTERM, SIGINT": "End in order: accept no more clients, deliver what is under way, remove "
    "the sockets. The exit status is 0. With --keep-descriptors, SIGTERM leaves all connections to "
    "the next process instead.",
    "SIGHUP": "Read the configuration file again: the log level and the limits that may change.",
    "SIGUSR1": "Write the state, and all that is waited for, to the log.",
    "SIGUSR2": "With --keep-descriptors, restart as with SIGTERM, but go on if that fails.",
}
_FILES = {
    DEFAULT_FILE: "the configuration",
    DEFAULT_SOCKET: "the client socket: who may open it controls every VM",
    DEFAULT_ADMIN_SOCKET: "the admin socket, for root and the daemon's user",
}
_CTL_VARIABLES = {
    "CCPROXY_SOCKET": "the proxy's socket, where no option names it",
    "CCPROXY_ADMIN_SOCKET": "the admin socket, where no option names it; without both it is beside "
    "the socket in CCPROXY_SOCKET, with .admin at its end",
}
_CTL_EXAMPLES = {
    "ccproxyctl top": "Watch who writes how much.",
    "ccproxyctl vms --json | jq '.[] | select(.state == \"lost\")'": "The VMs that were lost.",
    "ccproxyctl console -f pod-7": "Follow the console of a VM.",
    "ccproxyctl events -n 1 --event vm-lost": "Wait until a VM is lost.",
    "ccproxyctl drain && ccproxyctl vms": "Take no new VMs, and see which are left.",
}


class Page:
    """
    A manual page, growing from its top.

    @ivar name: its name.
    @ivar section: the section of the manual.
    """

    def __init__(self, name: str, section: int, summary: str) -> None:
        """
        @param summary: what it is about, in half a line.
        """
        self.name = name
        self.section = section
        title = f'"{escaped(name.upper())}" {section} "" "ccproxy {escaped(__version__)}" "ccproxy"'
        self._lines = [f".TH {title}"]
        self.heading("NAME")
        self._lines.append(f"{escaped(name)} \\- {escaped(summary)}")

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(f"{line}\n" for line in self._lines)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._lines.append(f'.SH "{escaped(text)}"')

    def subheading(self, text: str) -> None:
        """Begin a section within a section."""
        self._lines.append(f'.SS "{escaped(text)}"')

    def paragraph(self, text: str) -> None:
        """Say something; where it has lines, they are kept."""
        if "\n" in text:
            self._lines += [".PP", ".nf", *map(escaped, text.strip().splitlines()), ".fi"]
        elif text:
            self._lines += [".PP", escaped(text)]

    def usage(self, words: str) -> None:
        """Show what can be typed."""
        self._lines += [".PP", f"\\fB{escaped(words)}\\fR"]

    def item(self, term: str, text: str) -> None:
        """
        Explain something.

        @param term: it, escaped already.
        """
        self._lines += [".TP", term, escaped(text) or "\\&"]

    def items(self, heading: str, entries: Mapping[str, str]) -> None:
        """Begin a section, and explain things."""
        self.heading(heading)
        for name, text in entries.items():
            self.item(f"\\fB{escaped(name)}\\fR", text)

    def words(self, words: Iterable[Word]) -> None:
        """Explain options and arguments."""
        for word in words:
            value = f"\\fI{escaped(word.value)}\\fR" if word.value else ""
            names = ", ".join(f"\\fB{escaped(name)}\\fR" for name in word.names)
            choices = f" One of {', '.join(word.choices)}." if word.choices else ""
            self.item(f"{names} {value}".strip(), f"{word.help}.{choices}")


def escaped(text: str) -> str:
    """A text that roff shows as it is, and from which options can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = text.replace('"', "\\(dq")
    text = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)
    return f"\\&{text}" if text.startswith(".") else text


def ctlPage() -> Page:
    """C{ccproxyctl(1)}."""
    program = ccproxyctl.makeParser()
    page = Page("ccproxyctl", 1, "run processes in the VMs of ccproxy, and look after the proxy")
    page.heading("SYNOPSIS")
    page.usage("ccproxyctl COMMAND [OPTION...]")
    page.heading("DESCRIPTION")
    page.paragraph(program.description or "")
    page.words(wordsOf(program))
    page.heading("COMMANDS")
    for command, outer in ccproxyctl.commandParsers().items():
        about = ccproxyctl.COMMANDS[command][1]
        for name, help, parser in withSubcommands(command, about, outer):
            page.subheading(name)
            page.usage(" ".join(parser.format_usage().split()[1:]))
            page.paragraph(parser.description or f"{help[:1].upper()}{help[1:]}.")
            page.words(word for word in wordsOf(parser) if "--help" not in word.names)
            page.paragraph(parser.epilog or "")
    page.items("EXIT STATUS", {str(status): text for status, text in STATUSES.items()})
    page.paragraph("These are those of the commands that ask the daemon; the others say their own.")
    page.items("ENVIRONMENT", _CTL_VARIABLES)
    page.items("FILES", _FILES)
    page.items("EXAMPLES", _CTL_EXAMPLES)
    _seeAlso(page)
    return page


def daemonPage() -> Page:
    """C{cc-proxy(8)}."""
    page = Page("cc-proxy", 8, "the proxy between container runtimes and lightweight VMs")
    page.heading("SYNOPSIS")
    page.usage("cc-proxy [FLAG...]")
    page.heading("DESCRIPTION")
    page.paragraph(Options.longdesc.partition(" Times are")[0])
    page.paragraph(
        "cc-proxy takes the flags of the historic daemon of this name, with one dash or two, as "
        "-flag value or -flag=value; further settings are keys of the configuration file."
    )
    page.heading("FLAGS")
    page.words(
        Word((f"-{flag.name}",), _withDefault(flag.help, flag.default), flag.kind, (), False)
        for flag in FLAGS
    )
    page.items("SIGNALS", _SIGNALS)
    _daemonsEnd(page, {"0": "ended in order", "1": "it cannot start", "2": "a bad flag"})
    return page


def twistdPage() -> Page:
    """C{twistd-ccproxy(8)}."""
    page = Page("twistd-ccproxy", 8, "ccproxy as a service of Twisted")
    page.heading("SYNOPSIS")
    page.usage("twistd [TWISTD-OPTION...] ccproxy [OPTION...]")
    page.heading("DESCRIPTION")
    page.paragraph(Options.longdesc)
    page.heading("OPTIONS")
    for name, (default, text) in daemonOptions().items():
        value = "" if name in _FLAG_NAMES else "VALUE"
        page.words([Word((f"--{name}",), _withDefault(text, default), value, (), False)])
    page.items("SIGNALS", _SIGNALS)
    _daemonsEnd(page, {"0": "ended in order", "1": "it cannot start, or an option is bad"})
    return page


_FLAG_NAMES = {"help", "version", *(row[0] for row in Options.optFlags)}


def daemonOptions() -> dict[str, tuple[str, str]]:
    """Every option of C{twistd ccproxy}: its default and what it does."""
    parsed = Options()
    found = {row[0]: ("", row[2]) for row in parsed.optFlags}
    found |= {row[0]: (str(row[2] or ""), row[3]) for row in parsed.optParameters}
    found |= {name: ("", text) for name, text in parsed.docs.items() if name not in found}
    return {name: entry for name, entry in found.items() if name not in ("version", "help")}


def _withDefault(text: str, default: object) -> str:
    text = text.removesuffix(".")
    return f"{text} (default: {default})" if default else text


def _daemonsEnd(page: Page, statuses: Mapping[str, str]) -> None:
    page.items("EXIT STATUS", statuses)
    if page.name == "cc-proxy":
        page.items("ENVIRONMENT", {LOG_LEVEL_VARIABLE: "the log level; it wins over -log"})
    page.items("FILES", _FILES)
    _seeAlso(page)


def _seeAlso(page: Page) -> None:
    others = [f"{name}({section})" for name, section in PAGES if name != page.name]
    page.heading("SEE ALSO")
    page.paragraph(", ".join([*others, "twistd(1)"]))


#: What makes each page, by name and section.
PAGES = {
    ("ccproxyctl", 1): ctlPage,
    ("cc-proxy", 8): daemonPage,
    ("twistd-ccproxy", 8): twistdPage,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Write all pages.

    @param arguments: those of the command line, our own by default.
    @return: the exit status.
    """
    parser = argparse.ArgumentParser(description="Write the manual pages of ccproxy.")
    parser.add_argument("folder", type=Path, help="below which man1 and man8 are made")
    folder = parser.parse_args(arguments).folder
    for make in PAGES.values():
        page = make()
        path = folder / f"man{page.section}" / f"{page.name}.{page.section}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page.text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
