"""The qemu and bootstrap builders' keys: every rule has its row, with what the person reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.builders.bootstrap import BootstrapOptions
from imagebuilder.builders.qemuoptions import QemuOptions
from imagebuilder.errors import TemplateError
from imagebuilder.templates.template import load_template, plan_builds

SUM = "sha256:" + "0" * 64
BASE: dict[str, Any] = {"type": "qemu", "iso_url": "x.iso", "iso_checksum": SUM, "ssh_username": "root"}


def planned(tmp_path: Path, builder: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Problems and warnings that a template with this builder gives; keys with None are left out."""
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"builders": [{key: v for key, v in builder.items() if v is not None}]}))
    try:
        plan = plan_builds(load_template(str(path)))
    except TemplateError as error:
        return [str(problem) for problem in error.problems], []
    return [], [str(warning) for warning in plan.warnings]


PROBLEMS = {
    "no source": ({"iso_url": None, "iso_checksum": None}, "iso_url", "is missing"),
    "both urls": ({"iso_urls": ["a", "b"]}, "iso_urls", "not both"),
    "no checksum": ({"iso_checksum": None}, "iso_checksum", "is missing"),
    "short checksum": ({"iso_checksum": "sha256:0909"}, "iso_checksum", "64"),
    "odd checksum": ({"iso_checksum": "zzz"}, "iso_checksum", "zzz"),
    "size": ({"disk_size": "10GB"}, "disk_size", "'10GB' is not a size"),
    "no size": ({"disk_size": "0"}, "disk_size", "must not be 0"),
    "more sizes": ({"disk_additional_size": ["1G", "x"]}, "disk_additional_size", "'x' is not a size"),
    "interface": ({"disk_interface": "nvme"}, "disk_interface", "virtio"),
    "cache": ({"disk_cache": "fast"}, "disk_cache", "writeback"),
    "discard": ({"disk_discard": "yes"}, "disk_discard", "unmap"),
    "zeroes": ({"disk_detect_zeroes": "yes"}, "disk_detect_zeroes", "unmap"),
    "format": ({"format": "vmdk"}, "format", "qcow2"),
    "accelerator": ({"accelerator": "fast"}, "accelerator", "kvm"),
    "a number of initrds": ({"initrd": 1}, "initrd", "must be a path or a list of paths"),
    "backing without image": ({"use_backing_file": True}, "use_backing_file", "disk_image"),
    "backing and raw": ({"use_backing_file": True, "disk_image": True, "format": "raw"}, "use_backing_file", "qcow2"),
    "resize without image": ({"skip_resize_disk": True}, "skip_resize_disk", "disk_image"),
    "both commands": ({"boot_command": ["a"], "boot_steps": [["b", "c"]]}, "boot_steps", "not both"),
    "negative wait": ({"boot_command": ["<wait-1m>"]}, "boot_command", "wait"),
    "args without kernel": ({"kernel_args": "quiet"}, "kernel_args", "needs a kernel"),
    "initrd without kernel": ({"initrd": "i"}, "initrd", "needs a kernel"),
    "flat qemuargs": ({"qemuargs": ["-m", "1G"]}, "qemuargs", '[["-m", "1024M"]]'),
    "http ports": ({"http_port_min": 9000, "http_port_max": 8000}, "http_port_min", "greater"),
    "host ports": ({"host_port_min": 9000, "host_port_max": 8000}, "host_port_min", "greater"),
    "vnc ports": ({"vnc_port_min": 6000, "vnc_port_max": 5900}, "vnc_port_min", "greater"),
    "low vnc port": ({"vnc_port_min": 5000}, "vnc_port_min", "5900"),
    "http directory": ({"http_directory": "/no/such"}, "http_directory", "there is no directory '/no/such'"),
    "directory and content": ({"http_directory": "/tmp", "http_content": {"/a": "b"}}, "http_content", "not both"),
    "firmware": ({"firmware": "/no/such"}, "firmware", "there is no file"),
    "efi code": ({"efi_firmware_code": "/no/such"}, "efi_firmware_code", "there is no file"),
    "pflash": ({"use_pflash": True}, "use_pflash", "firmware"),
    "no vnc": ({"disable_vnc": True, "vnc_use_password": True}, "vnc_use_password", "no VNC"),
    "user": ({"ssh_username": None}, "ssh_username", "is missing"),
    "duration": ({"ssh_timeout": "5"}, "ssh_timeout", "5s"),
    "boolean": ({"headless": "maybe"}, "headless", "true or false"),
    "number": ({"cpus": "many"}, "cpus", "whole number"),
    "unknown key": ({"memmory": 1}, "memmory", "did you mean 'memory'"),
    "unknown distro": ({"distro": "centos-stream-99", "iso_url": None}, "distro", "centos-stream-9"),
    "user data": ({"disk_image": True, "cloud_init": {"user_data": "/no/such"}}, "cloud_init", "there is no file"),
    "name with a path": ({"vm_name": "../victim"}, "vm_name", "can't be the name"),
    "name of ours": ({"vm_name": "manifest.json"}, "vm_name", "can't be the name"),
    "bridge": ({"net_bridge": "br0"}, "net_bridge", "ssh_host"),
    "steps": ({"boot_steps": ["a"]}, "boot_steps", "description"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_rule_is_told_with_its_key(tmp_path: Path, name: str) -> None:
    keys, key, words = PROBLEMS[name]
    problems, _ = planned(tmp_path, {**BASE, **keys})
    assert any(key in problem and words in problem for problem in problems), problems


def test_all_of_them_are_told_together(tmp_path: Path) -> None:
    wrong = {
        **BASE,
        "disk_size": "10GB",
        "format": "vmdk",
        "cpus": "x",
        "memmory": 2,
        "initrd": "i",
        "boot_command": "<wait-1s>",
    }
    problems, _ = planned(tmp_path, wrong)
    assert len(problems) >= 6
    assert all("t.json:" in problem for problem in problems)


DOUBTS = {
    "no shutdown command": ({}, "ACPI"),
    "checksum none": ({"iso_checksum": "none"}, "digest"),
    "group interval": ({"boot_keygroup_interval": "1s"}, "no effect"),
    "http everywhere": ({"http_bind_address": "0.0.0.0"}, "loopback"),
    "number as duration": ({"ssh_timeout": 600}, "write '600s'"),
    "unknown token": ({"boot_command": ["<entre>"]}, "did you mean 'enter'"),
    "odd wait": ({"boot_command": ["<wait05>"]}, "wait05"),
    "http interface": ({"http_interface": "eth0"}, "no effect"),
    "little memory": ({"memory": 4}, "512"),
    "old checksum keys": ({"iso_checksum_type": "sha256", "iso_checksum": "0" * 64}, "iso_checksum"),
    "old timeout": ({"ssh_wait_timeout": "10m"}, "ssh_timeout"),
    "old ports": ({"ssh_host_port_min": 2222}, "host_port_min"),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_what_packer_swallows_is_said(tmp_path: Path, name: str) -> None:
    keys, words = DOUBTS[name]
    problems, warnings = planned(tmp_path, {**BASE, **keys})
    assert problems == []
    assert any(words in warning for warning in warnings), warnings


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"iso_checksum_type": "sha256", "iso_checksum": "0" * 64}, SUM),
        ({"iso_checksum_type": "none", "iso_checksum": ""}, "none"),
        ({"iso_md5": "0" * 32}, "md5:" + "0" * 32),
        ({"iso_checksum_url": "http://x/SUMS", "iso_checksum_type": "sha256"}, "file:http://x/SUMS"),
    ],
    ids=["type", "none", "md5", "url"],
)
def test_old_checksum_keys_mean_the_new_one(old: dict[str, str], new: str) -> None:
    raw = dict(old)
    list(QemuOptions.upgrade(raw))
    assert raw == {"iso_checksum": new}


def test_defaults_are_safe() -> None:
    options = QemuOptions(iso_url="x", iso_checksum="none", ssh_username="root")
    assert options.http_bind_address == options.vnc_bind_address == "127.0.0.1"
    assert options.ssh_disable_agent_forwarding
    assert options.ssh_password == ""
    assert (options.disk_discard, options.disk_detect_zeroes) == ("unmap", "unmap")


def test_bootstrap_needs_nothing_but_its_type(tmp_path: Path) -> None:
    assert planned(tmp_path, {"type": "bootstrap"})[0] == []
    assert BootstrapOptions().ssh_username == "root"


def test_bootstrap_without_cloud_init_has_only_root(tmp_path: Path) -> None:
    problems, _ = planned(tmp_path, {"type": "bootstrap", "cloud_init": False, "ssh_username": "debian"})
    assert any("ssh_username" in problem for problem in problems)
