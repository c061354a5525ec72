"""Signs of a guest that can't go on: real lines that are some, and real lines that are none."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.console import symptoms
from imagebuilder.errors import GuestError
from imagebuilder.qemu.qmp import QmpError
from tests import prompts

FATAL = {
    "panic": ("[    2.104512] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100", "panicked"),
    "panic without stamp": ("Kernel panic - not syncing: Fatal exception in interrupt", "panicked"),
    "no root": (
        "[    1.8] VFS: Unable to mount root fs on unknown-block(0,0)\n"
        "[    1.8] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
        "no root file system",
    ),
    "panic for memory": (
        "[    3.512345] Kernel panic - not syncing: System is deadlocked on memory (no killable processes)",
        "ran out of memory",
    ),
    "initrd too large": ("[    0.912345] Initramfs unpacking failed: write error", "does not fit"),
    "initramfs-tools": ("ALERT!  UUID=1234-ABCD does not exist.  Dropping to a shell!", "no root file system"),
    "dracut": (
        'Generating "/run/initramfs/rdsosreport.txt"\n\n\nEntering emergency mode. Exit the shell to continue.',
        "dracut's emergency shell",
    ),
    "systemd": (
        'You are in emergency mode. After logging in, type "journalctl -xb" to view\nsystem logs',
        "emergency mode",
    ),
    "kickstart line": (
        "The following problem occurred on line 12 of the kickstart file:\n\nUnknown command: instal",
        "refused the kickstart",
    ),
    "kickstart line broken": (
        "The following problem occurred on line 12 of\nthe kickstart file:", "refused the kickstart",
    ),
    "kickstart script": ("There was an error running the kickstart script at line 23.", "script failed"),
    "kickstart dialog": ("┌──────────────┤ Kickstart Error ├──────────────┐", "script failed"),
    "cmdline mode": (
        "[   34.520412] anaconda[2628]: The installation was stopped due to an error which occurred while running in "
        "non-interactive cmdline mode.",
        "Anaconda failed",
    ),
    "pane": ("Pane is dead (status 1, Tue Nov 21 10:00:00 2023)", "crashed"),
    "traceback": ("anaconda 34.25.0.29-1.el9 exception report", "crashed"),
    "no kickstart": (
        "[   12.3] dracut-initqueue[712]: Warning: failed to fetch kickstart from http://10.0.2.2:8000/ks.cfg",
        "could not fetch its kickstart",
    ),
    "d-i step": (
        "  │ An installation step failed. You can try to run the failing item      │\n"
        "  │ again from the menu, or skip it and choose something else. The        │\n"
        "  │ failing step is: Select and install software                          │",
        "step of the Debian installer",
    ),
    "d-i modules": (
        "  │ No kernel modules were found. This probably is due to a mismatch      │", "does not fit its mirror",
    ),
    "d-i preseed": (
        "  │ Failed to retrieve the preconfiguration file                          │\n"
        "  │ The file needed for preconfiguration could not be retrieved from      │",
        "could not fetch its preseed",
    ),
    "d-i preseed step": ("  Download debconf preconfiguration file failed", "could not fetch its preseed"),
    "d-i cd": ("  │ There was a problem reading data from the CD-ROM. Please make sure    │", "read its CD"),
    "subiquity": ("An error occurred. Press enter to start a shell", "Ubuntu's installer failed"),
    "autoinstall": ("Malformed autoinstall in 'storage' section", "refused its autoinstall file"),
    "autoyast": ("Error while parsing the AutoYaST profile.", "AutoYaST"),
    "grub rescue": ("error: no such device: 2a3b-4c5d.\nEntering rescue mode...\ngrub rescue> ", "own files"),
    "grub kernel": ("error: file `/vmlinuz' not found.\nerror: you need to load the kernel first.", "found no kernel"),
    "isolinux": ("boot: linx ks=http://10.0.2.2/ks.cfg\nCould not find kernel image: linx", "no kernel of that name"),
    "isolinux 6": ("boot: linx\nLoading linx... failed: No such file or directory\nboot:", "no kernel of that name"),
    "seabios": ("Booting from Hard Disk...\nBoot failed: no disk\n\nNo bootable device.", "nothing to boot"),
    "ovmf": ("BdsDxe: No bootable option or device was found.", "nothing to boot"),
}  # fmt: skip

STANDING = {
    "anaconda hub": (
        "Please make a selection from the above ['b' to begin installation, 'q' to quit,\n'r' to refresh]:",
        None,  # broken, the last line alone says too little
    ),
    "anaconda hub wide": (
        "Please make a selection from the above ['b' to begin installation, 'q' to quit, 'r' to refresh]: ",
        "waits for answers",
    ),
    "subiquity asks": ("Continue with autoinstall? (yes|no)", "may begin"),
    "uefi shell": ("UEFI Interactive Shell v2.2\nMapping table\nPress ESC in 1 seconds\nShell> ", "started its shell"),
    "grub rescue": ("grub rescue>", "own files"),
}

HINTS = {
    "oom": ("[  312.112233] Out of memory: Killed process 1834 (anaconda) total-vm:123kB", "lack of memory"),
    "full": ("cp: error writing '/mnt/sysimage/x': No space left on device", "full"),
    "ipxe": ("No more network devices", "network boot ROM"),
    "grub partition": ("error: no such partition.", "misses a partition"),
}

HARMLESS = {
    "login": "Login incorrect",
    "command line": "[    0.000000] Kernel command line: root=/dev/sda1 panic=10 systemd.unit=multi-user.target",
    "quoted panic": "echo 'the words Kernel panic - not syncing stand in a README'",
    "log of a log": "grep: /var/log/x: Kernel panic - not syncing: seen last week",
    "boot failed first": "Booting from Hard Disk...\nBoot failed: could not read the boot disk\nBooting from DVD/CD...",
    "emergency target": "[  OK  ] Reached target Emergency Mode is not this.",
    "dracut module": "dracut: *** Including module: emergency-shell-setup ***",
    "shell in a path": "Starting Interactive Shell> service",
    "grub prompt with command": "grub rescue> set prefix=(hd0,msdos1)/boot/grub",
    "space": "No space left on device checks are enabled",
    "yast": "Starting AutoYaST installation",
    "isolinux ok": "Loading vmlinuz... ok",
    "autoinstall word": "autoinstall: storage configured",
    "device": "[    1.2] No bootable device flag set on sda (ok)",
    "kickstart read": "Parsing the kickstart file: 120 lines",
    "prompt gone": "Shell> fs0:\nFS0:\\> startup.nsh",
}


@pytest.mark.parametrize(("text", "sentence"), FATAL.values(), ids=FATAL)
def test_fatal_signs(text: str, sentence: str) -> None:
    found = symptoms.find(text.splitlines())
    assert found is not None and found.fatal and sentence in found.sentence and found.advice


@pytest.mark.parametrize(("text", "sentence"), HINTS.values(), ids=HINTS)
def test_hints_end_nothing(text: str, sentence: str) -> None:
    found = symptoms.find(text.splitlines())
    assert found is not None and not found.fatal and sentence in found.sentence


@pytest.mark.parametrize(("text", "sentence"), STANDING.values(), ids=STANDING)
def test_prompts_count_only_while_they_stand(text: str, sentence: str | None) -> None:
    assert symptoms.find(text.splitlines(), standing=False) is None
    assert symptoms.find([*text.splitlines(), "and on it goes"]) is None
    found = symptoms.find([*text.splitlines(), "", "   "])
    assert (found is not None and sentence in found.sentence) if sentence else found is None


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_harmless_lines(text: str) -> None:
    found = symptoms.find(text.splitlines())
    assert found is None, found


def test_what_is_fatal_goes_before_what_is_not() -> None:
    found = symptoms.find(["[ 1.0] Out of memory: Killed process 12 (x)", "Pane is dead"])
    assert found is not None and found.fatal and found.line == "Pane is dead"


def test_texts_follow_one_style() -> None:
    for sign in symptoms.SIGNS:
        for words in (sign.sentence, sign.advice):
            assert words and words.rstrip(".!") == words and "\n" not in words


class NoScreen:
    """A machine without a graphics device."""

    def execute(self, command: str, arguments: Any = None, timeout: float = 10) -> Any:
        raise QmpError("QEMU refused 'screendump': there is no console", "GenericError")

    def hmp(self, line: str) -> str:
        raise AssertionError


def test_watcher_follows_the_serial_line(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    watcher = symptoms.Watcher(log, NoScreen())
    assert watcher.scan() is None  # no log yet
    log.write_text("Linux version 6.1\n")
    assert watcher.scan() is None
    with log.open("a") as file:
        file.write("cp: x: No space left on device\n[    2.0] Kernel pan")
    hint = watcher.scan()
    assert hint is not None and not hint.fatal
    with log.open("a") as file:
        file.write("ic - not syncing: Attempted to kill init!\n")
    found = watcher.scan()
    assert found is not None and found.fatal and "panicked" in found.sentence


def test_watcher_tells_a_hint_once(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_text("cp: x: No space left on device\n")
    watcher = symptoms.Watcher(log, NoScreen())
    assert watcher.scan() is not None
    with log.open("a") as file:
        file.write("on and on\n")
    assert watcher.scan() is None


def test_watcher_gives_a_prompt_time_to_be_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symptoms, "STANDING", 0.2)
    log = tmp_path / "serial.log"
    log.write_text("UEFI Interactive Shell v2.2\r\nShell> ")
    watcher = symptoms.Watcher(log, NoScreen())
    assert watcher.scan() is None
    time.sleep(0.25)
    found = watcher.scan()
    assert found is not None and "shell" in found.sentence


def test_watcher_leaves_the_end_of_qemu_to_others(tmp_path: Path) -> None:
    class Gone(NoScreen):
        def execute(self, command: str, arguments: Any = None, timeout: float = 10) -> Any:
            raise GuestError("QEMU ended")

    log = tmp_path / "serial.log"
    log.write_text("reboot: Power down\n")
    assert symptoms.Watcher(log, Gone()).scan() is None


@pytest.mark.qemu
def test_a_fatal_sign_is_seen_within_two_seconds(tmp_path: Path) -> None:
    iso = prompts.make_iso(tmp_path)
    with prompts.booted(tmp_path, "-cdrom", iso) as guest:
        watcher = symptoms.Watcher(guest.serial, guest.monitor)
        guest.type('<waitfor "boot:">')
        assert watcher.scan() is None
        guest.type("nonsense<enter>")
        end = time.monotonic() + 15
        while (found := watcher.scan()) is None and time.monotonic() < end:
            time.sleep(0.25)
        assert found is not None and found.fatal
        assert found.line.startswith("Loading nonsense... failed")


def test_scanning_is_cheap(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_text(
        "".join(f"[   {n}.123456] usb 1-1: new high-speed USB device number {n} at xhci\n" for n in range(2000))
    )
    watcher = symptoms.Watcher(log, NoScreen())
    assert watcher.scan() is None
    began = time.process_time()
    for _ in range(100):
        watcher.scan()
    assert time.process_time() - began < 0.2
