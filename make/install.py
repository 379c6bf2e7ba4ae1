"""
C{make install}: puts ccproxy where a machine has what is its own.

ccproxy and all that it needs go into a folder of their own, C{PREFIX/lib/ccproxy}, where they get
in nobody's way: a virtual environment whose files name the place that they will have, so that it
can be made somewhere else first (C{DESTDIR}), as packagers do. The rest are links and small files.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("cc-proxy", "ccproxyctl")
#: What may run the daemon where nobody says otherwise.
PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3", os.path.realpath(sys.executable))
#: Where the completion of each shell is looked for, below the prefix.
COMPLETIONS = {
    "bash": "share/bash-completion/completions/ccproxyctl",
    "zsh": "share/zsh/site-functions/_ccproxyctl",
    "fish": "share/fish/vendor_completions.d/ccproxyctl.fish",
}
#: The manual pages, below the prefix.
MANUAL = "share/man"
PAGES = ("man1/ccproxyctl.1", "man8/cc-proxy.8", "man8/twistd-ccproxy.8")
#: Writes what twistd knows of its plugins: it could not do so itself as a user without rights.
_KNOW_PLUGINS = "from twisted.plugin import IPlugin, getPlugins; list(getPlugins(IPlugin))"


class Places:
    """
    Where everything goes.

    @ivar prefix: where the files will be.
    @ivar tree: the folder of ccproxy itself, as it will be.
    """

    def __init__(self, prefix: str, destination: str, configuration: str) -> None:
        """
        @param destination: where all of it is put for now.
        @param configuration: the folder of configuration files.
        """
        self.prefix = Path(prefix)
        self.tree = self.prefix / "lib/ccproxy"
        self._destination = destination
        self._configuration = Path(configuration)

    def now(self, path: Path) -> Path:
        """Where a file is put for now."""
        return Path(f"{self._destination}{path}")

    @property
    def files(self) -> dict[Path, Path]:
        """The files of this folder that are installed, by where they will be."""
        contrib, lib = ROOT / "contrib", self.prefix / "lib"
        return {
            lib / "systemd/system/ccproxy.service": contrib / "systemd/ccproxy.service.in",
            lib / "systemd/system/ccproxy.socket": contrib / "systemd/ccproxy.socket",
            lib / "sysusers.d/ccproxy.conf": contrib / "systemd/ccproxy.sysusers",
            lib / "tmpfiles.d/ccproxy.conf": contrib / "systemd/ccproxy.tmpfiles",
        }

    @property
    def example(self) -> Path:
        """Where the configuration file will be."""
        return self._configuration / "ccproxy/ccproxy.toml"


def makeTree(places: Places, python: str, wheel: str) -> None:
    """
    Make the folder of ccproxy itself, in place of an older one.

    @param python: the Python that will run it.
    @param wheel: the file of ccproxy.
    """
    final = places.now(places.tree)
    new, old = final.with_name("ccproxy.new"), final.with_name("ccproxy.old")
    shutil.rmtree(new, ignore_errors=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    run(python, "-m", "venv", "--without-pip", new)
    inside = new / "bin/python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", inside)
    run(*pip, "install", "-qq", "--no-compile", wheel)
    run(inside, "-I", "-c", _KNOW_PLUGINS)
    run(inside, "-I", "-m", "compileall", "-q", "-s", new, "-p", places.tree, new / "lib")
    # Only the path of Python is of use later.
    settings = (new / "pyvenv.cfg").read_text().splitlines(keepends=True)
    write(new / "pyvenv.cfg", "".join(line for line in settings if not line.startswith("command")))
    for script in (new / "bin").iterdir():
        if script.name.lower().startswith("activate"):
            script.unlink()
        elif not script.is_symlink():
            # pip quotes a path with a space, in a script that a shell reads first.
            text = script.read_text().replace(f'"{inside}"', str(inside), 1)
            python = shlex.quote(f"{places.tree}/bin/python")
            text = text.replace(str(inside), f"{python} -I", 1)
            script.write_text(text)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def install(places: Places, python: str, wheel: str) -> None:
    """Install everything."""
    makeTree(places, python, wheel)
    for name in COMMANDS:
        link = places.now(places.prefix / "bin" / name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"../lib/ccproxy/bin/{name}")
    for path, source in places.files.items():
        write(places.now(path), source.read_text().replace("@lib@", str(places.tree)))
    inside = places.now(places.tree / "bin/python")
    for shell, place in COMPLETIONS.items():
        text = run(inside, "-I", "-m", "ccproxy.ctl.ccproxyctl", "completion", shell)
        write(places.now(places.prefix / place), text)
    run(inside, "-I", "-m", "ccproxy.ctl.manpages", places.now(places.prefix / MANUAL))
    example = places.now(places.example)
    if not example.exists():
        write(example, (ROOT / "contrib/ccproxy.toml").read_text())


def uninstall(places: Places) -> None:
    """Remove everything but the configuration, which may be somebody's work."""
    shutil.rmtree(places.now(places.tree), ignore_errors=True)
    links = (places.prefix / "bin" / name for name in COMMANDS)
    completions = (places.prefix / path for path in COMPLETIONS.values())
    pages = (places.prefix / MANUAL / page for page in PAGES)
    for path in (*links, *places.files, *completions, *pages):
        places.now(path).unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Write a file that everybody may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)


def run(*words: str | Path) -> str:
    """Run a program, which must succeed; what it has printed."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def suitable(pythons: Iterable[str]) -> str:
    """
    The first of some Pythons that can run the daemon.

    @raise SystemExit: none can.
    """
    problems = []
    for python in pythons:
        problem = unsuitable(python)
        if problem is None:
            return python
        problems.append(f"{python}: {problem}")
    raise SystemExit(
        "install: no Python can run the daemon; name another one with INSTALL_PYTHON=\n  "
        + "\n  ".join(problems)
    )


def unsuitable(python: str) -> str | None:
    """Why a Python cannot run the daemon, if it cannot."""
    if not os.path.exists(python):
        return "it is not there"
    major, minor, base = run(
        python, "-c", "import sys; print(*sys.version_info[:2], sys.base_prefix)"
    ).split(maxsplit=2)
    if (int(major), int(minor)) < (3, 11):
        return f"ccproxy needs Python 3.11 or later, and this is {major}.{minor}"
    if base.startswith(("/root/", "/home/", "/tmp/")):
        return f"it is below {base.strip()}, which no service sees (ProtectHome=, PrivateTmp=)"
    return None


def main() -> int:
    """Install or uninstall, as the command line says."""
    parser = argparse.ArgumentParser(description="install ccproxy: see make install")
    parser.add_argument("--python", help="what will run it (default: one of the system's)")
    parser.add_argument("--prefix", default="/usr/local")
    parser.add_argument("--destdir", default="")
    parser.add_argument("--sysconfdir", default="/etc")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--wheel", help="install this")
    what.add_argument("--uninstall", action="store_true")
    options = parser.parse_args()
    if not os.path.isabs(options.prefix):
        parser.error(f"the prefix {options.prefix!r} is no absolute path")
    places = Places(options.prefix, options.destdir, options.sysconfdir)
    if options.uninstall:
        uninstall(places)
        return 0
    os.umask(0o022)
    try:
        install(places, suitable([options.python] if options.python else PYTHONS), options.wheel)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    if not options.destdir:
        print(f"ccproxy is in {places.tree}. To run it by systemd:")
        print("  systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload")
        print("  systemctl enable --now ccproxy.socket ccproxy.service")
        if options.prefix.rstrip("/") not in ("/usr", "/usr/local"):
            print(f"systemd looks below /usr and /usr/local only, and not below {options.prefix}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
