"""
What C{ccproxyctl completion} prints, in the shells that it is for.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from io import StringIO
from unittest import skipIf

import pexpect
from twisted.trial.unittest import SynchronousTestCase

from ...ctl import completion
from ...ctl.commandline import wordsOf
from ...ctl.shells import SHELLS
from ...testing.daemon import environment

TIMEOUT = 60.0
#: What somebody might call a VM who wants a shell to do something.
NAMES = ("demo", "dim $(touch pwned)", "dim`touch pwned`;x", "-dash")


def without(shell: str) -> bool:
    """Whether this machine has no such shell."""
    return shutil.which(shell) is None


class CompletionTestCase(SynchronousTestCase):
    """Completes in a folder with a C{ccproxyctl} that knows some VMs."""

    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="ccp")
        self.addCleanup(shutil.rmtree, self.folder)
        program = os.path.join(self.folder, "ccproxyctl")
        names = " ".join(map(shlex.quote, NAMES))
        with open(program, "w") as file:
            file.write(f"#!/bin/sh\n[ \"$*\" = 'vms --quiet' ] && printf '%s\\n' {names}\n")
        os.chmod(program, 0o755)
        os.mkdir(os.path.join(self.folder, "files"))
        for name in ("c one.toml", "other"):
            open(os.path.join(self.folder, "files", name), "w").close()
        for shell in SHELLS:
            with (
                open(os.path.join(self.folder, f"script.{shell}"), "w") as file,
                contextlib.redirect_stdout(file),
            ):
                completion.main([shell])

    def run_(self, *words: str) -> list[str]:
        """The lines that a program prints, which may complain of nothing."""
        env = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "HOME": self.folder,
            "LANG": "C.UTF-8",
        }
        result = subprocess.run(
            words, env=env, cwd=self.folder, capture_output=True, text=True, check=True,
            timeout=TIMEOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.assertEqual(result.stderr, "")
        self.assertFalse(os.path.exists(os.path.join(self.folder, "pwned")))
        return result.stdout.splitlines()


class ScriptTests(SynchronousTestCase):
    """The scripts themselves."""

    def test_lines(self) -> None:
        """All commands are there, those within others too."""
        names = [line.name for line in completion.lines()]
        self.assertIn("vms", names)
        self.assertIn("vm start", names)
        for line in completion.lines():
            self.assertTrue(line.help, line.name)

    def test_lightness(self) -> None:
        """A command imports no other's module, and none a reactor before it is understood."""
        for words, absent in (
            (["status", "--help"], ["ccproxy.ctl.vms", "ccproxy.ctl.run", "twisted.web"]),
            (["completion", "bash"], ["twisted.internet.reactor", "twisted.web"]),
        ):
            code = (
                "import sys; from ccproxy.ctl import ccproxyctl\n"
                f"try: ccproxyctl.main({words})\n"
                "except SystemExit: pass\n"
                f"print([name for name in {absent} if name in sys.modules], file=sys.stderr)"
            )
            result = subprocess.run(
                [sys.executable, "-c", code], env=environment(), check=True, text=True,
                capture_output=True, timeout=TIMEOUT,
            )  # fmt: skip
            self.assertEqual(result.stderr, "[]\n")

    def test_bad(self) -> None:
        with contextlib.redirect_stderr(StringIO()) as said, self.assertRaises(SystemExit) as end:
            completion.main(["csh"])
        self.assertEqual(end.exception.code, 2)
        self.assertIn("invalid choice: 'csh'", said.getvalue())


@skipIf(without("bash"), "there is no bash")
class BashTests(CompletionTestCase):
    """bash."""

    def complete(self, *words: str) -> list[str]:
        """What the last word may become, as bash inserts it."""
        quoted = " ".join(map(shlex.quote, words))
        last, before = shlex.quote(words[-1]), shlex.quote(words[-2])
        return self.run_(
            "bash", "-c",
            f"compopt() {{ :; }}; source script.bash; COMP_WORDS=({quoted});"
            f"COMP_CWORD={len(words) - 1}; _ccproxyctl ccproxyctl {last} {before};"
            "((${#COMPREPLY[@]})) && printf '%s\\n' \"${COMPREPLY[@]}\"; true",
        )  # fmt: skip

    def test_options(self) -> None:
        """Each command has the options that it takes, neither more nor less."""
        for line in completion.lines():
            found = self.complete("ccproxyctl", *line.name.split(), "-")
            names = [name for word in wordsOf(line.parser) for name in word.names]
            self.assertEqual(found, names, line.name)

    def test_commands(self) -> None:
        self.assertEqual(self.complete("ccproxyctl", "st"), ["status", "stop"])
        self.assertEqual(self.complete("ccproxyctl", "--v"), ["--version"])
        self.assertEqual(self.complete("ccproxyctl", "vm", "st"), ["start", "stop"])

    def test_values(self) -> None:
        self.assertEqual(self.complete("ccproxyctl", "loglevel", "w"), ["warn"])
        self.assertEqual(
            self.complete("ccproxyctl", "check-config", "files/c"), ["files/c one.toml"]
        )
        found = self.complete("ccproxyctl", "vms", "--admin-socket", "files/")
        self.assertEqual(sorted(found), ["files/c one.toml", "files/other"])
        self.assertEqual(self.complete("ccproxyctl", "run", "--workdir", "f"), ["files"])
        self.assertEqual(self.complete("ccproxyctl", "events", "--count", ""), [])

    def test_names(self) -> None:
        """Names of VMs are inserted quoted, and no shell expands them."""
        for words in (("console",), ("console", "-f"), ("sessions",), ("run", "--vm")):
            found = self.complete("ccproxyctl", *words, "d")
            self.assertEqual([shlex.split(text) for text in found], [[n] for n in NAMES[:3]])


@skipIf(without("fish"), "there is no fish")
class FishTests(CompletionTestCase):
    """fish."""

    def complete(self, line: str) -> list[str]:
        """What the last word of a line may become."""
        command = f"source script.fish; complete -C {shlex.quote(line)}"
        return [found.partition("\t")[0] for found in self.run_("fish", "-c", command)]

    def test_complete(self) -> None:
        for line, found in (
            ("ccproxyctl st", ["status", "stop"]),
            ("ccproxyctl vm st", ["start", "stop"]),
            ("ccproxyctl loglevel ", ["debug", "error", "info", "warn"]),
            ("ccproxyctl exec console --h", ["--help"]),
            ("ccproxyctl check-config files/o", ["files/other"]),
            ("ccproxyctl console d", sorted(NAMES[:3])),
            ("ccproxyctl events --vm d", sorted(NAMES[:3])),
            ("ccproxyctl events --count ", []),
        ):
            self.assertEqual(sorted(self.complete(line)), found, line)

    def test_options(self) -> None:
        for line in completion.lines():
            names = {name for word in wordsOf(line.parser) for name in word.names}
            found = set(self.complete(f"ccproxyctl {line.name} -"))
            self.assertLessEqual(names, found, line.name)


@skipIf(without("zsh"), "there is no zsh")
class ZshTests(CompletionTestCase):
    """zsh, which completes in a terminal only."""

    def test_complete(self) -> None:
        env = {"PATH": f"{self.folder}:{os.environ['PATH']}", "HOME": self.folder, "TERM": "dumb"}
        shell = pexpect.spawn("zsh", ["-f", "-i"], cwd=self.folder, env=env, timeout=TIMEOUT,
                              encoding="utf-8", dimensions=(24, 200))  # fmt: skip
        self.addCleanup(shell.close, force=True)
        shell.sendline("PS1=; autoload -Uz compinit; compinit -u -D; source script.zsh; echo o''k")
        shell.expect("ok\r\n")
        for typed, expected in (
            ("ccproxyctl sta\t", "ccproxyctl status"),
            ("ccproxyctl vm star\t", "ccproxyctl vm start"),
            ("ccproxyctl loglevel d\t", "ccproxyctl loglevel debug"),
            ("ccproxyctl console de\t", "ccproxyctl console demo"),
            ("ccproxyctl events --fo\t", "ccproxyctl events --follow"),
            ("ccproxyctl console dim\\ \t", "ccproxyctl console dim\\ \\$\\(touch\\ pwned\\)"),
        ):
            # The line is printed, and never run: Ctrl-A and Ctrl-E are its beginning and its end.
            shell.send(f"{typed}\x01print -r -- '\x05'\r")
            shell.expect_exact(expected)
            shell.expect("\n")
        self.assertFalse(os.path.exists(os.path.join(self.folder, "pwned")))
