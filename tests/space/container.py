"""Walk a Dockerfile without a container engine, on Linux as root: its steps are done in a copy of this machine's root
that nothing outside sees and that is gone afterwards (an overlay in memory, in a mount namespace of its own).

`FROM python:…` is stood for by this machine's own Python, without its packages, as `python` and `pip` in /usr/local;
Debian's packages, users, folders, ownership and the variables of the steps are the real ones.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SEARCHED = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
NETWORK = re.compile(r"^(PIP_.*|.*_PROXY|.*_proxy|SSL_CERT_.*|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE)$")  # how to get out
PYTHON = "/usr/local/python"
MOUNTS = """
set -e
mount -t tmpfs -o size=12g,mode=755 walk {scratch}
mkdir {scratch}/upper {scratch}/work {scratch}/root
mount -t overlay -o lowerdir=/,upperdir={scratch}/upper,workdir={scratch}/work overlay {scratch}/root
mount -t proc proc {scratch}/root/proc
mount --rbind /dev {scratch}/root/dev
mount -t tmpfs -o mode=1777 tmp {scratch}/root/tmp
mkdir -p {scratch}/root{hidden}
mount -t tmpfs hidden {scratch}/root{hidden}
mkdir -p {scratch}/root{python}/bin {scratch}/root{python}/lib/{version}/site-packages
echo ready
exec sleep infinity
"""


class StepFailedError(Exception):
    """A step of the Dockerfile did not work."""


def cannot_walk() -> str | None:
    """Why no Dockerfile can be walked here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root"
    if missing := [name for name in ("unshare", "nsenter", "setpriv", "apt-get") if not shutil.which(name)]:
        return f"needs {', '.join(missing)}"
    tmpfs, overlay = "mount -t tmpfs t $0", "mount -t overlay -o lowerdir=/,upperdir=$0/u,workdir=$0/w o $0"
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "--mount", "sh", "-c", f"{tmpfs} && mkdir $0/u $0/w && {overlay}", folder]
        tried = subprocess.run(command, capture_output=True, text=True)
    return f"no mounts here: {tried.stderr.strip()}" if tried.returncode else None


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(instruction, the rest of its line), continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", dockerfile)
    lines = (line.strip() for line in joined.splitlines())
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]  # type: ignore[misc]


@dataclass
class Container:
    """What the steps so far have made."""

    root: Path
    holder: int  # a process in the namespace
    context: Path  # the Dockerfile's folder
    user: str = "root"
    folder: str = "/"
    variables: dict[str, str] = field(default_factory=lambda: {"PATH": SEARCHED, "LANG": "C.UTF-8"})
    health: str = ""
    entrypoint: list[str] = field(default_factory=list)

    def walk(self) -> None:
        """Do all steps of the Dockerfile.

        Raises:
            StepFailedError: one does not work, or is one this walk does not know.
        """
        for name, rest in instructions((self.context / "Dockerfile").read_text(encoding="utf-8")):
            step = getattr(self, f"_{name.lower()}", None)
            if step is None:
                raise StepFailedError(f"{name}: not known here")
            step(rest)

    def start(self, arguments: list[str], **variables: str) -> subprocess.Popen[str]:
        """A program in the container, as the present user in the present folder; its output is for the caller."""
        # An index that cannot be reached from here is passed over at once, not after minutes for each package.
        network = {"PIP_RETRIES": "0"} | {k: v for k, v in os.environ.items() if NETWORK.match(k)}
        inside = self.variables | network | variables
        identity = ["setpriv", "--reuid", self.user, "--regid", self.user, "--init-groups", "--inh-caps=-all"]
        command = [
            "nsenter", f"--target={self.holder}", "--mount", f"--root={self.root}", f"--wd={self.root}{self.folder}",
            *(identity if self.user != "root" else []), "env", "-i", *(f"{k}={v}" for k, v in inside.items()),
            *arguments,
        ]  # fmt: skip
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, script: str, seconds: float = 1800) -> str:
        """What a shell line prints in the container.

        Raises:
            StepFailedError: it fails.
        """
        process = self.start(["sh", "-c", script])
        output, _ = process.communicate(timeout=seconds)
        if process.returncode:
            raise StepFailedError(f"{script}\n{output[-3000:]}")
        return output

    def _from(self, image: str) -> None:
        wanted = re.fullmatch(r"python:(\d+\.\d+)(?:-slim)?", image)
        if not wanted or wanted[1] != ".".join(map(str, sys.version_info[:2])):
            raise StepFailedError(f"FROM {image}: this machine has Python {sys.version.split()[0]}")
        # The image has no users of its own.
        self.run("for user in $(awk -F: '$3 >= 1000 && $3 < 60000 {print $1}' /etc/passwd); do userdel $user; done")
        self.run(f"ln -sf {PYTHON}/bin/python3 /usr/local/bin/python && ln -sf python /usr/local/bin/python3")
        self.run(f"python -m ensurepip && ln -sf {PYTHON}/bin/pip3 /usr/local/bin/pip && chmod -R a+rX {PYTHON}")

    def _run(self, script: str) -> None:
        self.run(script)

    def _user(self, name: str) -> None:
        self.user = name

    def _workdir(self, folder: str) -> None:
        self.folder = "/"
        self.run(f"mkdir -p {folder}")
        self.folder = folder

    def _env(self, settings: str) -> None:
        for setting in shlex.split(settings):
            name, value = setting.split("=", 1)
            self.variables[name] = re.sub(r"\$(\w+)", lambda found: self.variables.get(found[1], ""), value)

    def _copy(self, rest: str) -> None:
        *flags, source, target = rest.split()
        owner = next((flag.partition("=")[2] for flag in flags if flag.startswith("--chown=")), "root")
        packed = subprocess.run(["tar", "-C", self.context, "-c", source], capture_output=True, check=True).stdout
        process = self._as_root("tar", "--no-same-owner", "-x", "-C", f"{self.folder}/{target}")
        process.communicate(packed)
        names = [path.name for path in self.context.iterdir()] if source == "." else [source]
        self._as_root("chown", "-R", f"{owner}:", *(f"{self.folder}/{target}/{name}" for name in names)).communicate()

    def _as_root(self, *arguments: str) -> subprocess.Popen[bytes]:
        enter = ["nsenter", f"--target={self.holder}", "--mount", f"--root={self.root}", f"--wd={self.root}/"]
        return subprocess.Popen([*enter, *arguments], stdin=subprocess.PIPE)

    def _expose(self, port: str) -> None:
        self.variables["EXPOSED"] = port

    def _healthcheck(self, rest: str) -> None:
        self.health = rest.partition("CMD ")[2]

    def _entrypoint(self, rest: str) -> None:
        self.entrypoint = json.loads(rest)


@contextmanager
def container(context: Path, hidden: Path) -> Iterator[Container]:
    """An empty container for the folder's Dockerfile.

    Args:
        hidden: a folder of this machine that is empty in the container.
    """
    with tempfile.TemporaryDirectory() as scratch:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        script = MOUNTS.format(scratch=scratch, hidden=hidden, python=PYTHON, version=version)
        holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout
            if holder.stdout.readline() != "ready\n":
                raise StepFailedError("no overlay")
            # Seen through the holder: outside its namespace nothing is mounted there.
            made = Container(Path(f"/proc/{holder.pid}/root{scratch}/root"), holder.pid, context)
            _bring_python(made, version)
            yield made
        finally:
            holder.kill()
            holder.wait()


def _bring_python(made: Container, version: str) -> None:
    """This machine's Python, without what was installed for it."""
    library = Path(sysconfig.get_path("stdlib"))
    program = Path(sys.base_prefix) / "bin" / version
    made.run(f"cp {shlex.quote(str(program))} {PYTHON}/bin/python3")
    copied = f"tar -C {shlex.quote(str(library))} --exclude=./site-packages --exclude=./test --exclude=__pycache__ -c ."
    made.run(f"{copied} | tar -C {PYTHON}/lib/{version} -x")
    shared = f"{shlex.quote(sys.base_prefix)}/lib/libpython*.so*"
    made.run(f"cp -a {shared} {PYTHON}/lib/ 2>/dev/null && ldconfig {PYTHON}/lib || true")
