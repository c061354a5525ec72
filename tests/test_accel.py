from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from imagebuilder import paths
from imagebuilder.qemu import accel

SOURCE = Path(accel.__file__).with_name("accel.S")
only_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the tiny guest is for x86_64")


def fake_qemu(directory: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `qemu-system-x86_64` that is first on PATH, notes each run, and a device that opens."""
    script = directory / "qemu-system-x86_64"
    script.write_text(f"#!/bin/sh\necho run >> {directory}/runs\n{body}\n")
    script.chmod(0o755)
    device = directory / "kvm"
    device.touch()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setattr(accel, "KVM_DEVICE", device)
    return script


def runs(directory: Path) -> int:
    return len((directory / "runs").read_text().splitlines()) if (directory / "runs").exists() else 0


@pytest.mark.skipif(
    not (shutil.which("as") and shutil.which("ld")) or platform.machine() != "x86_64", reason="binutils"
)
def test_guest_is_what_its_source_says(tmp_path: Path) -> None:
    subprocess.run(["as", SOURCE, "-o", tmp_path / "accel.o"], check=True)
    link = ["ld", "-Ttext=0", "--oformat", "binary", "-e", "0", tmp_path / "accel.o", "-o", tmp_path / "accel.bin"]
    subprocess.run(link, check=True)
    shipped = accel.guest_firmware()
    assert len(shipped) == 65536
    assert shipped[-4096:] == (tmp_path / "accel.bin").read_bytes()


@pytest.mark.parametrize(("requested", "name"), [("tcg", "tcg"), ("none", "none"), ("xen", "xen"), ("hvf", "hvf")])
def test_what_was_asked_for_is_taken(requested: str, name: str) -> None:
    choice = accel.choose(requested, "qemu-system-x86_64")
    assert (choice.name, choice.warning) == (name, None)


def test_forced_kvm_is_not_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qemu(tmp_path, "exit 1", monkeypatch)
    assert accel.choose("kvm", "qemu-system-x86_64", force=True).name == "kvm"
    assert runs(tmp_path) == 0


@only_x86
def test_working_kvm_is_chosen_and_proved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qemu(tmp_path, "exit 33", monkeypatch)
    for requested in (None, "kvm"):
        choice = accel.choose(requested, "qemu-system-x86_64")
        assert (choice.name, choice.cpu_model, choice.warning) == ("kvm", "host", None)
    assert runs(tmp_path) == 2  # QEMU's default CPU and the host's, once each


@only_x86
def test_kvm_without_host_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qemu(tmp_path, 'case "$*" in *"-cpu host"*) kill -ABRT $$;; esac; exit 33', monkeypatch)
    choice = accel.choose("kvm", "qemu-system-x86_64")
    assert (choice.name, choice.cpu_model) == ("kvm", None)


@only_x86
def test_hanging_kvm_becomes_tcg_with_one_line_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = 'for word; do case "$word" in *path=*) printf rcptm > "${word##*path=}";; esac; done; exec sleep 60'
    fake_qemu(tmp_path, body, monkeypatch)
    monkeypatch.setattr(accel, "TIME_LIMIT", 0.5)
    first, second = (accel.choose("kvm", "qemu-system-x86_64") for _ in range(2))
    assert first == second and first.name == "tcg"
    assert first.warning is not None and "\n" not in first.warning
    assert "hung at entering long mode" in first.warning and "TCG" in first.warning
    assert runs(tmp_path) == 1
    kept = json.loads((paths.cache_directory() / "accel.json").read_text())
    assert [row["usable"] for row in kept.values()] == [False]


@only_x86
def test_what_qemu_refuses_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qemu(tmp_path, "echo 'ioctl(KVM_CREATE_VM) failed: Device or resource busy' >&2; exit 1", monkeypatch)
    for _ in range(2):
        assert "resource busy" in accel.choose(None, "qemu-system-x86_64").reason
    assert runs(tmp_path) == 2


@only_x86
def test_a_changed_device_or_binary_is_proved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = fake_qemu(tmp_path, "exit 33", monkeypatch)
    accel.prove_kvm("qemu-system-x86_64")
    (tmp_path / "kvm").chmod(0o666)
    accel.prove_kvm("qemu-system-x86_64")
    assert runs(tmp_path) == 4
    script.write_text(script.read_text() + "# another version\n")
    accel.prove_kvm("qemu-system-x86_64")
    assert runs(tmp_path) == 6


@only_x86
@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 5}', '{"x": {"colour": "red"}}'])
def test_a_broken_cache_is_no_obstacle(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qemu(tmp_path, "exit 33", monkeypatch)
    (paths.cache_directory() / "accel.json").write_text(content)
    assert accel.prove_kvm("qemu-system-x86_64").usable


def test_missing_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "kvm")
    choice = accel.choose(None, f"qemu-system-{platform.machine()}")
    assert choice.name == "tcg" and "No such file" in choice.reason


def test_another_processor_is_emulated() -> None:
    other = "aarch64" if platform.machine() != "aarch64" else "x86_64"
    choice = accel.choose("kvm", f"qemu-system-{other}")
    assert choice.name == "tcg" and f"can't run {other} guests" in choice.reason


@pytest.mark.qemu
@only_x86
@pytest.mark.parametrize("cpu_model", [None, "max", "qemu64"])
def test_tiny_guest_passes_under_tcg(cpu_model: str | None) -> None:
    code, passed, said = accel.run_guest("qemu-system-x86_64", "tcg", cpu_model)
    assert (code, passed, said) == (33, "rcptmlufsxwi", "")


@pytest.mark.qemu
@only_x86
def test_real_answer_comes_in_time_and_is_kept() -> None:
    began = time.monotonic()
    first = accel.choose("kvm", "qemu-system-x86_64")
    assert time.monotonic() - began < 2 * accel.TIME_LIMIT + 3
    began = time.monotonic()
    assert accel.choose("kvm", "qemu-system-x86_64") == first
    assert time.monotonic() - began < 0.1
