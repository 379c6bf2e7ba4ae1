"""
Completion scripts for bash, zsh and fish.

Names of VMs are asked of the daemon when they are needed. Whoever registers a VM chooses its
name, so no shell may expand one: they are split at line ends only, and quoted where they are
inserted.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping

import attrs

from .commandline import Word, wordsOf

#: The values that can be completed, by what help calls them: names of VMs, files, folders.
_VM, _FILES, _FOLDERS = "vm", "files", "folders"
_KINDS = {
    "VM": _VM, "FILE": _FILES, "PATH": _FILES, "unix://PATH": _FILES, "DIR": _FOLDERS,
}  # fmt: skip


@attrs.frozen
class Line:
    """
    A command, as completion sees it.

    @ivar name: what is typed to get there, such as C{vms}, or C{vm start}.
    @ivar help: what it does.
    @ivar parser: what may follow.
    """

    name: str
    help: str
    parser: argparse.ArgumentParser

    @property
    def options(self) -> list[Word]:
        """Its options."""
        return [word for word in wordsOf(self.parser) if word.names]

    @property
    def arguments(self) -> list[Word]:
        """Its other arguments."""
        return [word for word in wordsOf(self.parser) if not word.names]

    def within(self, lines: list[Line]) -> list[str]:
        """The commands within this one."""
        words = len(self.name.split()) + 1
        return [
            line.name.split()[-1]
            for line in lines
            if line.name.startswith(f"{self.name} ") and len(line.name.split()) == words
        ]


# -- bash

_BASH = """\
# Completion of ccproxyctl for bash, made by: ccproxyctl completion bash
_ccproxyctl_words() {{
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$current")
}}
_ccproxyctl_files() {{
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen "$1" -- "$current")
}}
_ccproxyctl_vms() {{
    local name
    while IFS= read -r name; do
        [[ $name == "$current"* ]] && COMPREPLY+=("$(printf %q "$name")")
    done < <("$program" vms --quiet 2>/dev/null)
}}
_ccproxyctl() {{
    local program=$1 current=$2 previous=$3 command=${{COMP_WORDS[1]}} options=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        _ccproxyctl_words {first}
        return
    fi
    if ((COMP_CWORD > 2)); then
        case "$command ${{COMP_WORDS[2]}}" in
            {nested}) command+=" ${{COMP_WORDS[2]}}" ;;
        esac
    fi
    case $command in
        {options}
    esac
    if [[ $current == -* ]]; then
        _ccproxyctl_words "$options"
        return
    fi
    case "$command:$previous" in
        {values}
    esac
}}
complete -F _ccproxyctl ccproxyctl
"""


def bash(program: argparse.ArgumentParser, lines: list[Line]) -> str:
    """
    The script for bash 4.4 or later.

    @param program: what may stand in the place of a command.
    @param lines: the commands.
    """
    options, values = [], []
    for line in lines:
        names = " ".join(name for option in line.options for name in option.names)
        options.append(f"{shlex.quote(line.name)}) options={shlex.quote(names)} ;;")
        for option in line.options:
            if option.value:
                patterns = "|".join(shlex.quote(f"{line.name}:{name}") for name in option.names)
                values.append(f"{patterns}) {_bashValue(option)} ;;")
        arguments = line.within(lines)
        action = f"_ccproxyctl_words {shlex.quote(' '.join(arguments))}" if arguments else ":"
        for word in line.arguments[:1]:
            action = _bashValue(word)
        values.append(f"{shlex.quote(line.name)}:*) {action} ;;")
    first = [line.name for line in lines if " " not in line.name]
    first += [name for word in wordsOf(program) for name in word.names]
    nested = [shlex.quote(line.name) for line in lines if " " in line.name]
    return _BASH.format(
        first=shlex.quote(" ".join(first)),
        nested="|".join(nested) or "''",
        options="\n        ".join(options),
        values="\n        ".join(values),
    )


def _bashValue(word: Word) -> str:
    if word.choices:
        return f"_ccproxyctl_words {shlex.quote(' '.join(word.choices))}"
    actions = {
        _VM: "_ccproxyctl_vms",
        _FILES: "_ccproxyctl_files -f",
        _FOLDERS: "_ccproxyctl_files -d",
    }
    return actions.get(_KINDS.get(word.value, ""), ":")


# -- zsh

_ZSH = """\
#compdef ccproxyctl
# Completion of ccproxyctl for zsh, made by: ccproxyctl completion zsh
_ccproxyctl_vms() {{
    local -a names
    names=("${{(@f)$(ccproxyctl vms --quiet 2>/dev/null)}}")
    compadd -- $names
}}
_ccproxyctl() {{
    local command=
    local -a within
    while true; do
        within=()
        case $command in
            {within}
        esac
        if (( ! $#within )); then
            break
        elif (( CURRENT == 2 )); then
            _describe command within
            return
        fi
        command=${{command:+$command }}$words[2]
        shift words
        (( CURRENT-- ))
    done
    case $command in
        {arguments}
    esac
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _ccproxyctl "$@"
else
    compdef _ccproxyctl ccproxyctl
fi
"""


def zsh(program: argparse.ArgumentParser, lines: list[Line]) -> str:
    """
    The script for zsh.

    @param program: what may stand in the place of a command.
    @param lines: the commands.
    """
    within, arguments = [], []
    first = [f"{line.name}:{line.help}" for line in lines if " " not in line.name]
    first += [f"{name}:{word.help}" for word in wordsOf(program) for name in word.names]
    within.append(f"'') within=({' '.join(map(shlex.quote, first))}) ;;")
    for line in lines:
        inner = line.within(lines)
        if inner:
            within.append(f"{shlex.quote(line.name)}) within=({' '.join(inner)}) ;;")
            continue
        specs = [spec for word in wordsOf(line.parser) for spec in _zshSpecs(word)]
        quoted = " ".join(map(shlex.quote, specs))
        arguments.append(f"{shlex.quote(line.name)}) _arguments {quoted} ;;")
    return _ZSH.format(within="\n            ".join(within), arguments="\n        ".join(arguments))


def _zshSpecs(word: Word) -> list[str]:
    """What C{_arguments} is told about it."""
    actions = {_VM: "_ccproxyctl_vms", _FILES: "_files", _FOLDERS: "_files -/"}
    action = actions.get(_KINDS.get(word.value, ""), " ")
    if word.choices:
        action = f"({' '.join(word.choices)})"
    value = f":{_escaped(word.value, ':')}:{action}" if word.value else ""
    if not word.names:
        return [("*" if word.repeats else "") + value]
    exclusive = "*" if word.repeats else f"({' '.join(word.names)})"
    help = f"[{_escaped(word.help, '[]')}]"
    return [
        f"{exclusive}{name}{'=' if value and name.startswith('--') else ''}{help}{value}"
        for name in word.names
    ]


def _escaped(text: str, special: str) -> str:
    return "".join(f"\\{c}" if c in f"\\{special}" else c for c in text)


# -- fish

_FISH = """\
# Completion of ccproxyctl for fish, made by: ccproxyctl completion fish
function __ccproxyctl_after
    set -l words (commandline -opc)
    set -e words[1]
    set -l count (count $argv)
    test (count $words) -ge $count; and test "$words[1..$count]" = "$argv"
end
function __ccproxyctl_first
    test (count (commandline -opc)) -eq 1
end
complete -c ccproxyctl -f
"""

_FISH_FILES = "-F"


def fish(program: argparse.ArgumentParser, lines: list[Line]) -> str:
    """
    The script for fish.

    @param program: what may stand in the place of a command.
    @param lines: the commands.
    """
    found = [_fishOption(word, "__ccproxyctl_first") for word in wordsOf(program)]
    for line in lines:
        *outer, name = line.name.split()
        where = f"__ccproxyctl_after {' '.join(outer)}" if outer else "__ccproxyctl_first"
        found.append(f"-n {_fished(where)} -a {name} -d {_fished(line.help)}")
        here = f"__ccproxyctl_after {line.name}"
        found += [_fishOption(word, here) for word in line.options]
        for word in line.arguments[:1]:
            values = _fishValues(word)
            if values:
                found.append(f"-n {_fished(here)} {values}")
    return _FISH + "".join(f"complete -c ccproxyctl {line}\n" for line in found)


def _fishOption(word: Word, where: str) -> str:
    names = " ".join(
        f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in word.names
    )
    text = f"-n {_fished(where)} {names} -d {_fished(word.help)}"
    if not word.value:
        return text
    values = _fishValues(word)
    return f"{text} -r {values}" if values == _FISH_FILES else f"{text} -x {values}".rstrip()


def _fishValues(word: Word) -> str:
    if word.choices:
        return f"-a {_fished(' '.join(word.choices))}"
    values = {
        _VM: "-a '(ccproxyctl vms --quiet 2>/dev/null)'",
        _FILES: _FISH_FILES,
        _FOLDERS: "-a '(__fish_complete_directories)'",
    }
    return values.get(_KINDS.get(word.value, ""), "")


def _fished(text: str) -> str:
    """A text in quotes of fish."""
    return "'{}'".format(text.replace("\\", "\\\\").replace("'", "\\'"))


#: What makes the script of each shell.
SHELLS: Mapping[str, Callable[[argparse.ArgumentParser, list[Line]], str]] = {
    "bash": bash,
    "zsh": zsh,
    "fish": fish,
}
