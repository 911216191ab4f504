"""Machines of their own on this one: each a network, mount, process and name space, with a home, a /tmp, shared memory
and an environment that no other sees, joined by a switch. As a script: what such a machine runs first.

What is heavy is lent: the packages of the environment that runs the tests are read by every machine's own environment,
into which the project itself is installed anew. No machine has an index of packages, nor a way out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

NETWORK = "10.77.0"
HOME = "/home/operator"  # in every machine
SHARED = "/home/shared"  # as NFS would be: the same in all
NEEDED = ("setpriv", "unshare", "nsenter", "ip", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd")


def missing() -> str | None:
    """Why no such machines can be made here; None if they can."""
    if os.getuid() != 0:
        return "needs root, for namespaces"
    if lacking := [tool for tool in NEEDED if shutil.which(tool) is None]:
        return f"needs {', '.join(lacking)}"
    trial = "ip link add br0 type bridge && ip link add one type veth peer name two"
    spaces = ["--net", "--mount", "--pid", "--uts", "--fork"]
    made = subprocess.run(["unshare", *spaces, "sh", "-c", trial], capture_output=True)
    return None if made.returncode == 0 else "namespaces or network devices are not allowed here"


@dataclass(frozen=True)
class Machine:
    """One that runs."""

    name: str
    address: str
    init: subprocess.Popen
    folder: Path  # holds its home, as this machine sees it

    @property
    def home(self) -> Path:
        return self.folder / "home" / Path(HOME).name

    def command(self, *words: str) -> list[str]:
        """What runs a command in it."""
        env = {"HOME": HOME, "TERM": "dumb", "LANG": "C.UTF-8", "PATH": f"{Path(sys.base_prefix) / 'bin'}:{os.defpath}"}
        setting = [f"{key}={value}" for key, value in env.items()]
        entered = ["nsenter", "--target", str(first_process(self.init)), "--all", "--wd=/"]
        return [*entered, "env", "--ignore-environment", *setting, *words]

    def run(self, script: str, timeout: float = 300) -> subprocess.CompletedProcess:
        """What a shell says to some lines, its two outputs in one."""
        return subprocess.run(
            self.command("bash", "-c", script),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )


def first_process(init: subprocess.Popen) -> int:
    """The process that its own machine calls number 1: the child of `unshare`."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        children = Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.05)
    raise TimeoutError(f"machine of process {init.pid} did not start")


@contextlib.contextmanager
def machines(*names: str):
    """A laptop, which also is the switch, and machines with an ssh server that it may enter. Where none can be made, the
    test that wants them is skipped."""
    if why := missing():
        pytest.skip(f"no machines of their own on this one: {why}")
    root = Path(tempfile.mkdtemp(prefix="hosts-", dir="/var/tmp"))
    (root / "shared").mkdir()
    started: list[Machine] = []
    try:
        laptop = _start(root, "laptop", f"{NETWORK}.1")
        started.append(laptop)
        _inside(laptop, "ip link add switch type bridge && ip link set switch up && ip link set lo up")
        _inside(laptop, f"ip address add {laptop.address}/24 dev switch")
        key = laptop.home / ".ssh" / "talos_ray"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        for number, name in enumerate(names, 10):
            machine = _start(root, name, f"{NETWORK}.{number}")
            started.append(machine)
            _plug_in(laptop, machine, f"port{number}")
            shutil.copy(key.with_suffix(".pub"), machine.home / ".ssh" / "authorized_keys")
        yield started
    finally:
        for machine in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first_process(machine.init), signal.SIGKILL)  # and so every process of that machine
            machine.init.wait(timeout=30)
        shutil.rmtree(root, ignore_errors=True)


def _start(root: Path, name: str, address: str) -> Machine:
    folder = root / name
    ssh = folder / "home" / Path(HOME).name / ".ssh"
    ssh.mkdir(parents=True, mode=0o700)
    spaces = ["--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--propagation", "private", "--kill-child"]
    log = (folder / "log").open("w")
    init = subprocess.Popen(
        # It ends with this process, also where that is killed.
        ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, sys.executable, __file__, name, str(folder), str(root / "shared")],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    machine = Machine(name, address, init, folder)
    deadline = time.monotonic() + 120
    while not (machine.home / ".ready").exists():
        if init.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"machine {name} did not start: {(folder / 'log').read_text()}")
        time.sleep(0.1)
    return machine


def _plug_in(switch: Machine, machine: Machine, port: str) -> None:
    _inside(switch, f"ip link add {port} type veth peer name {port}-far && ip link set {port} master switch up")
    # Devices are moved by a process that both sides' process numbers mean something to: this one.
    move = ["ip", "link", "set", f"{port}-far", "netns", str(first_process(machine.init)), "name", "eth0"]
    subprocess.run(["nsenter", "--target", str(first_process(switch.init)), "--net", *move], check=True)
    _inside(machine, f"ip address add {machine.address}/24 dev eth0 && ip link set eth0 up && ip link set lo up")
    _inside(machine, f"ip route add default via {switch.address}")


def _inside(machine: Machine, script: str) -> None:
    done = machine.run(script)
    if done.returncode != 0:
        raise RuntimeError(f"on {machine.name}, {script!r}: {done.stdout}")


# ------------------------------------------------------------------------------- the first process of a machine


def main(name: str, folder: str, shared: str) -> None:
    """Make this namespace a machine: its own files where programs look for them, an ssh server, and an end for orphans."""
    socket.sethostname(name)
    _mount("-t", "proc", "proc", "/proc")
    passwd = Path(folder, "passwd")
    passwd.write_text(f"root:x:0:0:root:{HOME}:/bin/bash\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\nnobody:x:65534:65534::/:/bin/sh\n")
    _mount("--bind", str(passwd), "/etc/passwd")
    # Below the machine's own /home, so that nothing is made on this one.
    _mount("--bind", str(Path(folder, "home")), "/home")
    Path(SHARED).mkdir()
    _mount("--bind", shared, SHARED)
    for place in ("/tmp", "/run", "/dev/shm"):
        _mount("-t", "tmpfs", "-o", "size=8g,mode=1777", "tmpfs", place)
    _environment(Path(HOME))
    Path("/run/sshd").mkdir(mode=0o755)
    keys = Path(HOME, ".ssh", "host")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys)], check=True)
    options = ("UsePAM=no", "PasswordAuthentication=no", "PidFile=none", "StrictModes=no", "MaxStartups=50")
    settings = [word for option in options for word in ("-o", option)]
    subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", str(keys), *settings])
    Path(HOME, ".ready").touch()
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(1)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _environment(home: Path) -> None:
    """The Python that the page asks for, and a virtual environment of its own, which reads the packages that are here."""
    home.joinpath(".bashrc").write_text(f"export PATH={Path(sys.base_prefix) / 'bin'}:$PATH\n")
    home.joinpath(".bash_profile").write_text(". ~/.bashrc\nexport PATH=~/.local/bin:$PATH\n")  # as Ubuntu and Fedora do
    settings = home / ".config" / "pip"
    settings.mkdir(parents=True)
    # pip writes that a wish not to isolate builds is "false".
    settings.joinpath("pip.conf").write_text("[install]\nno-index = true\nno-build-isolation = false\n")
    venv = home / "talos_ray_venv"
    subprocess.run([Path(sys.base_prefix) / "bin" / "python3.11", "-m", "venv", str(venv)], check=True)
    packages = venv / "lib" / "python3.11" / "site-packages"
    for old in packages.glob("setuptools*"):  # too old for the project: the lent one is newer
        shutil.rmtree(old)
    packages.joinpath("lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    ray = venv / "bin" / "ray"
    ray.write_text(f"#!{venv}/bin/python\nfrom ray.scripts.scripts import main\nmain()\n")
    ray.chmod(0o755)


if __name__ == "__main__":
    main(*sys.argv[1:])
