"""Runs the real `imgbuild` as a user does, follows its events, and looks afterwards for what it left behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagebuilder.layers.record import Layer
from imagebuilder.layers.store import Store
from tests.testdistro import TestDistro, kickstart

ARGV = [sys.executable, "-c", "from imagebuilder.cli import main; main()"]


@dataclass
class Outcome:
    """What a finished run said."""

    code: int
    events: list[dict[str, Any]]
    stderr: str
    seconds: float

    @property
    def text(self) -> str:
        return "\n".join(event["text"] for event in self.events) + self.stderr

    def texts(self, kind: str) -> list[str]:
        return [event["text"] for event in self.events if event["kind"] == kind]

    @property
    def ran(self) -> list[str]:
        """The script files that ran, in their order."""
        return [found[1] for text in self.texts("say") if (found := re.match("Running script '(.*)'", text))]

    @property
    def machines(self) -> int:
        """How many times a machine was started."""
        return sum(text.startswith("Starting the machine") for text in self.texts("say"))


@dataclass
class Running:
    """An `imgbuild --json` that runs in its own session; events are read as they come."""

    process: subprocess.Popen[str]
    began: float = field(default_factory=time.monotonic)
    events: list[dict[str, Any]] = field(default_factory=list)

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            yield self.events[-1]

    def until(self, text: str) -> None:
        """Read events until one holds the text."""
        for event in self.lines():
            if text in event["text"]:
                return
        raise AssertionError(f"'{text}' never came; it said:\n{Outcome(-1, self.events, self.stderr(), 0).text}")

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def finish(self, timeout: float = 300) -> Outcome:
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            out, err = self.process.communicate()
            raise AssertionError(f"imgbuild still ran after {timeout} s:\n{out[-3000:]}\n{err[-3000:]}") from None
        self.events += [json.loads(line) for line in out.splitlines()]
        return Outcome(self.process.returncode, self.events, err, time.monotonic() - self.began)


@contextmanager
def imgbuild(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> Iterator[Running]:
    """Start `imgbuild --json ARGUMENTS`; it is dead at the end of the block, whatever happened."""
    environment = {**os.environ, "TMPDIR": str(cwd / "tmp"), **(env or {})}
    (cwd / "tmp").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [*ARGV, "--json", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Running(process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def run(*arguments: str, cwd: Path, timeout: float = 300, env: dict[str, str] | None = None) -> Outcome:
    """Run it to its end."""
    with imgbuild(*arguments, cwd=cwd, env=env) as running:
        return running.finish(timeout)


def written(path: Path, template: dict[str, Any]) -> str:
    path.write_text(json.dumps(template, indent=2), encoding="utf-8")
    return str(path)


def wait_until(condition: Callable[[], bool], within: float = 10.0) -> bool:
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def processes_of(directory: Path) -> list[str]:
    """Command lines of living processes that name the directory or work in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            here = str((entry / "cwd").readlink())
        except OSError:
            continue
        if (
            state != "Z"
            and command
            and "pytest" not in command
            and (str(directory) in command or here.startswith(str(directory)))
        ):
            found.append(command)
    return found


def leftovers(directory: Path) -> list[str]:
    """Files under the directory that a build makes on its way: work directories, temporary files, half images."""
    names = [str(path.relative_to(directory)) for path in directory.rglob("*")]
    return [name for name in names if "imgbuild-" in name or ".tmp" in name or name.split("/")[-1].startswith(".")]


@dataclass(frozen=True)
class Small:
    """An installed test distribution to build on, which is quicker than installing it."""

    image: Path
    key: Path  # private; root's

    def builder(self, **keys: Any) -> dict[str, Any]:
        return {**_machine(self.key), "disk_image": True, "iso_url": str(self.image), **keys}


def _machine(key: Path) -> dict[str, Any]:
    return {
        "type": "qemu", "name": "tiny", "iso_checksum": "none", "memory": 256, "cpus": 1, "disk_size": "1G",
        "disk_cache": "unsafe", "output_directory": "output", "vm_name": "disk.qcow2", "ssh_username": "root",
        "ssh_timeout": "3m", "ssh_private_key_file": str(key), "shutdown_command": "poweroff",
    }  # fmt: skip


def installation(distro: TestDistro, key: Path, **keys: Any) -> dict[str, Any]:
    """A builder that installs from a kickstart, which it serves."""
    public = key.with_suffix(".pub").read_text().strip()
    return {
        **_machine(key), "iso_url": str(distro.iso), "kernel": "iso:/images/pxeboot/vmlinuz",
        "initrd": "iso:/images/pxeboot/initrd.img", "wait_for_reset": True,
        "kernel_args": "console=ttyS0 inst.ks=http://{{ .HTTPIP }}:{{ .HTTPPort }}/ks.cfg",
        "http_content": {"/ks.cfg": kickstart(ssh_public_key=public)}, **keys,
    }  # fmt: skip


def installed(distro: TestDistro, directory: Path) -> Small:
    """Install it, without layers."""
    key = directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    template = {"builders": [installation(distro, key)]}
    outcome = run("build", "-no-cache", written(directory / "t.json", template), cwd=directory)
    assert outcome.code == 0, outcome.text
    return Small(directory / "output/disk.qcow2", key)


@dataclass
class Project:
    """A directory with a template, the scripts that it names, and a cache of its own."""

    directory: Path
    template: dict[str, Any]
    name: str = "t.json"

    def copy(self, directory: Path) -> Project:
        """Another of the same, with the same layers."""
        shutil.copytree(self.directory, directory)
        return Project(directory, json.loads(json.dumps(self.template)))

    @property
    def env(self) -> dict[str, str]:
        return {"IMGBUILD_CACHE_DIR": str(self.directory / "cache")}

    @property
    def builder(self) -> dict[str, Any]:
        """The first one, to be changed."""
        found: dict[str, Any] = self.template["builders"][0]
        return found

    def write(self, name: str, *lines: str) -> None:
        """A script."""
        (self.directory / name).write_text("\n".join(["#!/bin/sh", "set -e", *lines, ""]), encoding="utf-8")

    def written(self) -> str:
        return Path(written(self.directory / self.name, self.template)).name

    def build(self, *options: str, good: bool = True, env: dict[str, str] | None = None) -> Outcome:
        """Replaces the image of an earlier build."""
        arguments = ("build", "-force", *options, self.written())
        outcome = run(*arguments, cwd=self.directory, env={**self.env, **(env or {})})
        assert (outcome.code == 0) is good, outcome.text
        return outcome

    def plan(self, *options: str) -> list[dict[str, Any]]:
        """What `imgbuild plan` says of the first build's steps."""
        outcome = run("plan", *options, self.written(), cwd=self.directory, env=self.env)
        assert outcome.code == 0, outcome.text
        found: list[dict[str, Any]] = next(event["layers"] for event in outcome.events if event["kind"] == "plan")
        return found

    def store(self) -> Store:
        return Store(self.directory / "cache/layers")

    def layer(self, step: int) -> Layer:
        """The only layer that there is of a step."""
        (found,) = [layer for layer in self.store().layers() if layer.record.step == step]
        return found

    @property
    def image(self) -> Path:
        return self.directory / "output/disk.qcow2"


def unsound(store: Store) -> list[str]:
    """What lies in a store of layers and shouldn't: half of one, broken ones, something else."""
    whole = {layer.path: layer for layer in store.layers()}
    places = [path for path in store.directory.iterdir() if path.name != "lock"] if store.directory.is_dir() else []
    wrong = [path.name for path in places if path not in whole]
    for layer in whole.values():
        files = {path: expected.sha256 for path, expected in layer.files()}
        wrong += [str(path) for path, digest in files.items() if hashed(path) != digest]
        wrong += [str(path) for path in layer.path.iterdir() if path.stat().st_mode & 0o077]
    return wrong


def hashed(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


Entry = tuple[int, int, int, int, str]
"""Type and mode, owner, group, device number; digest of the content, or a link's target."""


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """The biggest partition of an image, mounted read-only, its journal left alone; takes root."""
    with tempfile.TemporaryDirectory() as scratch:
        raw, point = Path(scratch, "raw"), Path(scratch, "mounted")
        point.mkdir()
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(raw)], check=True)
        table = json.loads(subprocess.check_output(["sfdisk", "--json", str(raw)]))["partitiontable"]
        start = max(table["partitions"], key=lambda one: one["size"])["start"] * table.get("sectorsize", 512)
        subprocess.run(["mount", "-o", f"loop,ro,noload,offset={start}", str(raw), str(point)], check=True)
        try:
            yield point
        finally:
            subprocess.run(["umount", str(point)], check=True)


def tree(image: Path) -> dict[str, Entry]:
    """Every name in an image's system, with all that it is but times and place."""
    with mounted(image) as top:
        paths = sorted(path for path in top.rglob("*"))
        return {f"/{path.relative_to(top)}": _entry(path) for path in paths}


def _entry(path: Path) -> Entry:
    status = path.lstat()
    content = ""
    if path.is_symlink():
        content = os.fspath(path.readlink())
    elif stat.S_ISREG(status.st_mode):
        content = hashed(path)
    return (status.st_mode, status.st_uid, status.st_gid, status.st_rdev, content)


def unlike(one: Path, other: Path) -> set[str]:
    """The names in two images' systems that only one of them has, or that differ."""
    first, second = tree(one), tree(other)
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
