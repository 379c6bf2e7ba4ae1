"""
Runs a command beside a real systemd, without touching the machine's own.

The box has namespaces of its own for processes, mounts, names, the network and control groups. Its
root is the machine's with a layer in memory above it; what the command and systemd write there goes
away with it. systemd boots as far as C{basic.target}; then the command runs as root.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SYSTEMD = "/lib/systemd/systemd"
#: Exit statuses: the time was up; the command did not run; the box cannot be had here.
OVERDUE, BROKEN, IMPOSSIBLE = 124, 125, 77
#: What a program may expect to find in /dev, by its major and minor number.
DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
#: What it takes, tried out.
TRIAL = """\
mount --make-rprivate / && mount -t tmpfs none /mnt && cd /mnt && mkdir upper work merged &&
mount -t overlay none -o lowerdir=/,upperdir=upper,workdir=work merged &&
mount -t cgroup2 none merged/sys
"""
NAMESPACES = (
    *("--mount", "--pid", "--fork", "--uts", "--ipc", "--net", "--cgroup"),
    "--kill-child=KILL",
)

SERVICE = """\
[Unit]
Requires=basic.target
After=basic.target

[Service]
Type=oneshot
ExecStart=/bin/sh /box/command
"""
#: Ends systemd when the command has ended, and keeps its status.
COMMAND = """\
cd /box
{command} > output 2>&1 < /dev/null
echo $? > status
kill -s RTMIN+4 1
"""
#: Nothing of the machine's hardware is the box's business.
MASKED = ("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-networkd.service")


def missing() -> str | None:
    """Why no box can be had here, if none can."""
    if os.geteuid() != 0:
        return "it takes root, for namespaces and mounts"
    for program in (SYSTEMD, "unshare", "mount", "pivot_root"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "sh", "-c", TRIAL],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        return f"this machine does not give what it takes: {tried.stderr.strip()}"
    return None


def run(box: Path, command: list[str], trees: list[str], timeout: float) -> int:
    """
    Make a box, and run the command in it.

    @param box: an empty folder.
    @param trees: folders whose contents are put into the box, from its root on.
    @param timeout: seconds until it is ended.
    @return: the exit status of the command, or one of those above.
    """
    (box / "command").write_text(COMMAND.format(command=shlex.join(command)))
    (box / "root").mkdir()
    inside = [sys.executable, __file__, "--inside", str(box), *trees]
    with open(box / "boot.log", "wb") as log:
        try:
            subprocess.run(
                ["unshare", *NAMESPACES, *inside],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=timeout,
                check=False,
            )
            failure = BROKEN
        except subprocess.TimeoutExpired:
            failure = OVERDUE
    output, status = box / "output", box / "status"
    if output.exists():
        sys.stdout.write(output.read_text(errors="replace"))
    if status.exists():
        return int(status.read_text())
    what = "took too long" if failure == OVERDUE else "did not end as it should"
    print(f"systemdbox: it {what}", file=sys.stderr)
    sys.stderr.write("".join((box / "boot.log").read_text().splitlines(keepends=True)[-20:]))
    return failure


def boot(box: Path, trees: list[str]) -> None:
    """Within the namespaces: make the box's root, go there, and become systemd."""
    mount("--make-rprivate", "/")
    layer = box / "root"
    mount("-t", "tmpfs", "tmpfs", layer)
    for name in ("upper", "work", "merged"):
        (layer / name).mkdir()
    root = layer / "merged"
    layers = f"lowerdir=/,upperdir={layer}/upper,workdir={layer}/work"
    mount("-t", "overlay", "overlay", "-o", layers, root)
    for tree in trees:
        shutil.copytree(tree, root, symlinks=True, dirs_exist_ok=True)
    # It has the mode of the tree by now, which may be one that nobody else may enter.
    root.chmod(0o755)
    (root / "box").mkdir(exist_ok=True)
    mount("--bind", box, root / "box")
    mount("-t", "proc", "proc", root / "proc")
    # systemd would raise limits of the kernel, which are the machine's own.
    mount("--bind", root / "proc/sys", root / "proc/sys")
    mount("-o", "remount,bind,ro", root / "proc/sys")
    # Read-only, like that of a container: systemd leaves the devices alone then.
    mount("-t", "sysfs", "sysfs", "-o", "ro", root / "sys")
    mount("-t", "cgroup2", "cgroup2", root / "sys/fs/cgroup")
    for name in ("run", "tmp", "var/tmp", "dev"):
        mount("-t", "tmpfs", "-o", "mode=1777" if "tmp" in name else "mode=755", name, root / name)
    for name, (major, minor) in DEVICES.items():
        os.mknod(root / "dev" / name, 0o020666, os.makedev(major, minor))
        os.chmod(root / "dev" / name, 0o666)
    for name in ("pts", "shm"):
        (root / "dev" / name).mkdir()
    mount("-t", "devpts", "devpts", "-o", "newinstance,ptmxmode=666", root / "dev/pts")
    (root / "dev/ptmx").symlink_to("pts/ptmx")
    units = root / "etc/systemd/system"
    units.mkdir(parents=True, exist_ok=True)
    (units / "box.service").write_text(SERVICE)
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    os.chdir(root)
    Path("box.old").mkdir()
    subprocess.run(["pivot_root", ".", "box.old"], check=True)
    os.chdir("/")
    subprocess.run(["umount", "-l", "/box.old"], check=True)
    options = ("--unit=box.service", "--log-level=notice", "--log-target=console")
    # systemd wants to know that it is in a container of some kind.
    environment = {**os.environ, "container": "ccproxy-box"}
    os.execve(SYSTEMD, [SYSTEMD, "--system", *options, "--show-status=no"], environment)


def mount(*words: str | Path) -> None:
    """Mount something."""
    subprocess.run(["mount", *words], check=True)


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description="run a command beside a real systemd")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS")
    parser.add_argument(
        "--tree",
        action="append",
        default=[],
        metavar="FOLDER",
        help="put its contents into the box",
    )
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    problem = missing()
    if problem is not None:
        print(f"systemdbox: {problem}", file=sys.stderr)
        return IMPOSSIBLE
    box = tempfile.mkdtemp(prefix="systemdbox-", dir="/var/tmp")
    try:
        return run(Path(box), options.command, options.tree, options.timeout)
    finally:
        shutil.rmtree(box, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        boot(Path(sys.argv[2]), sys.argv[3:])
    sys.exit(main())
