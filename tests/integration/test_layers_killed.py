"""Builds that are killed, that run out of room, and that run at the same time: the store of layers stays sound."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.harness import (
    Outcome,
    Project,
    Small,
    imgbuild,
    leftovers,
    mounted,
    processes_of,
    unsound,
    wait_until,
)

pytestmark = pytest.mark.qemu

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts images and file systems")

KILLS = 30
SCRIPTS = ["1.sh", "2.sh", "3.sh"]


@pytest.fixture
def here(small: Small, tmp_path: Path) -> Project:
    """Three quick scripts, each of which needs what the one before left."""
    directory = tmp_path / "project"
    directory.mkdir()
    builder = small.builder(shutdown_command="sync; poweroff -f")
    made = Project(
        directory, {"builders": [builder], "provisioners": [{"type": "shell", "script": name} for name in SCRIPTS]}
    )
    for number in (1, 2, 3):
        rewrite(made, number, "first")
    return made


def rewrite(here: Project, number: int, text: str) -> None:
    """Give a script another text to write."""
    before = [f"test -s /etc/{number - 1}"] if number > 1 else []
    here.write(f"{number}.sh", *before, f"test ! -e /etc/{number}", f"echo {text} > /etc/{number}")


def written_by(image: Path) -> list[str]:
    """What the three scripts left in an image."""
    with mounted(image) as top:
        return [(top / f"etc/{number}").read_text().strip() for number in (1, 2, 3)]


@needs_root
def test_kill_9_at_any_moment(here: Project) -> None:
    """Every round changes a script, so that there is something to do; a build quicker than its kill must be good."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng, killed, texts = random.Random(seed), 0, ["first"] * 3
    length = 10.0  # seconds that a first build takes at least under TCG; a later one is at its end sooner
    while killed < KILLS:
        number = rng.randint(1, 3)
        texts[number - 1] = f"round-{killed}"
        rewrite(here, number, texts[number - 1])
        with imgbuild("build", "-force", here.written(), cwd=here.directory, env=here.env) as running:
            try:
                running.process.wait(timeout=rng.uniform(0.3, length))
            except subprocess.TimeoutExpired:
                killed += 1
                os.kill(running.process.pid, signal.SIGKILL)
            outcome = running.finish()
        assert outcome.code in (0, -signal.SIGKILL), outcome.text
        if outcome.code == 0:
            assert written_by(here.image) == texts
            length = min(length, 1.2 * outcome.seconds)
        assert wait_until(lambda: processes_of(here.directory) == []), processes_of(here.directory)
        assert wait_until(lambda: not leftovers(here.directory / "tmp")), leftovers(here.directory)
        assert wait_until(lambda: unsound(here.store()) == []), unsound(here.store())
    here.build()
    assert written_by(here.image) == texts
    assert unsound(here.store()) == []


@contextmanager
def tiny_file_system(point: Path, mib: int) -> Iterator[None]:
    """A disk that is full soon."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "tmpfs", str(point)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(point)], check=True)


@needs_root
@pytest.mark.parametrize("mib", [1, 110], ids=lambda mib: f"{mib}MiB")
def test_a_full_disk_costs_layers_only(here: Project, mib: int) -> None:
    cache = here.directory / "cache"
    cache.mkdir()
    with tiny_file_system(cache, mib):
        outcome = here.build()
        assert outcome.ran == SCRIPTS
        assert [text for text in outcome.texts("warning") if "No space left" in text or "is there room" in text]
        assert unsound(here.store()) == []
        assert written_by(here.image) == ["first"] * 3
        assert here.build("-until=1").code == 0


@needs_root
def test_two_of_the_same_at_once(here: Project) -> None:
    def build(output: str) -> Outcome:
        mine = Project(here.directory, {**here.template, "builders": [{**here.builder, "output_directory": output}]})
        mine.name = f"{output}.json"
        return mine.build()

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(build, ["one", "two"]))
    assert sorted(name for outcome in outcomes for name in outcome.ran) == SCRIPTS
    assert sum(outcome.machines for outcome in outcomes) == 1
    assert "Another build makes step" in outcomes[0].text + outcomes[1].text
    for output in ("one", "two"):
        assert written_by(here.directory / output / "disk.qcow2") == ["first"] * 3
    assert unsound(here.store()) == []
    assert leftovers(here.directory) == processes_of(here.directory) == []
