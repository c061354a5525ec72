"""Signs in a guest's output that it can't go on, or why it might not: what they mean and what to do.

Only looked for until the guest can be reached: afterwards anyone may print such words.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.console.keypace import Monitor
from imagebuilder.console.screen import Screen
from imagebuilder.console.serialtext import SerialLog
from imagebuilder.errors import GuestError

STANDING = 5.0  # seconds that a prompt must be the last thing shown, until nobody answers it
_OVERLAP = 20  # lines of the serial line that are looked at again with the next ones: a sign may have several
_SCREEN_INTERVAL = 1.0  # seconds between two looks at the screen, which cost more than the serial line


@dataclass(frozen=True)
class Sign:
    """A pattern over lines (words may be broken anywhere between lines); `standing`: it must be the last of them."""

    pattern: re.Pattern[str]
    sentence: str
    advice: str
    fatal: bool = True
    standing: bool = False


@dataclass(frozen=True)
class Symptom:
    """A sign that was seen, and the words in which the guest gave it."""

    sentence: str
    advice: str
    fatal: bool
    line: str


def _sign(pattern: str, sentence: str, advice: str, *, fatal: bool = True, standing: bool = False) -> Sign:
    broken = re.sub(r"(?<=[\w.,:'-]) (?=[\w(])", r"\\s+", pattern)  # a space between words
    return Sign(re.compile(broken, re.MULTILINE), sentence, advice, fatal, standing)


# A kernel's lines may begin with a time stamp, a systemd unit's or dracut's with its name.
_STAMP = r"^(?:\[ *\d+\.\d+\] ?)?(?:[\w.-]+\[\d+\]: ?)?"

_KICKSTART = "correct the kickstart; check it with ksvalidator"
_MEMORY = "give it more memory (memory)"

SIGNS: Sequence[Sign] = (
    # kernel and early user space
    _sign(r"Unable to mount root fs on|Cannot open root device", "the kernel found no root file system",
          "check the initrd and root= of its command line, and the disk interface"),
    _sign(_STAMP + r"Kernel panic - not syncing: .*(?:no killable processes|Out of memory)",
          "the kernel ran out of memory", _MEMORY),
    _sign(_STAMP + r"Kernel panic - not syncing", "the kernel panicked",
          "see what it said before; try another machine_type or cpu_model, or more memory"),
    _sign(_STAMP + r"(?:Initramfs unpacking failed: write error|RAMDISK: incomplete write)",
          "the initrd does not fit into memory", _MEMORY),
    _sign(r"^ALERT! .* does not exist\. +Dropping to a shell!", "the initrd found no root file system",
          "check root= of the kernel's command line and the disk interface"),
    _sign(r"^(?:Generating \"/run/initramfs/rdsosreport\.txt\"|Entering emergency mode\. Exit the shell to continue\.)",
          "the boot ended in dracut's emergency shell",
          "check inst.stage2, inst.repo and root= of the kernel's command line, and that the network came up"),
    _sign(r"^You are in emergency mode\. After logging in,|^Give root password for maintenance|"
          r"^Press Enter for maintenance", "the boot ended in systemd's emergency mode",
          "see which unit failed; often a file system in /etc/fstab is missing"),
    _sign(_STAMP + r"Out of memory: Killed process", "the kernel ended a process for lack of memory", _MEMORY,
          fatal=False),
    _sign(r"\bNo space left on device$", "a file system is full", "raise disk_size, or memory for an installer in RAM",
          fatal=False),
    # Anaconda (Fedora, CentOS, RHEL and their kin)
    _sign(r"The following problem occurred on line \d+ of the kickstart file", "Anaconda refused the kickstart",
          _KICKSTART),
    _sign(r"^(?:\W*)Kickstart Error\W*$|There was an error running the kickstart script at line \d+|"
          r"^Error running the kickstart script", "a kickstart script failed", _KICKSTART),
    _sign(r"The installation was stopped due to", "Anaconda failed, or needs an answer that the kickstart lacks",
          "read what it says next, and correct the kickstart"),
    _sign(r"^Pane is dead", "Anaconda crashed", f"see the lines above; {_MEMORY} if it was killed"),
    _sign(r"^anaconda [\d.]+\S* exception report|^An unknown error has occurred\b", "Anaconda crashed",
          "see the traceback; a newer installer or less unusual kickstart may help"),
    _sign(r"Warning: (?:anaconda: )?(?:failed to fetch kickstart from|Unable to download the kickstart file)",
          "the installer could not fetch its kickstart", "check the address in inst.ks= and that the network came up"),
    _sign(r"^Please make a selection from the above \[.*'b' to begin installation.*\]: ?$",
          "Anaconda waits for answers that the kickstart does not give", _KICKSTART, standing=True),
    # debian-installer
    _sign(r"An installation step failed\.[\s\S]{0,300}The failing step is: |^The failing step is: ",
          "a step of the Debian installer failed", "see its name; Alt-F4 shows the installer's log (console: tty4)"),
    _sign(r"^No kernel modules were found\.", "the Debian installer's kernel does not fit its mirror",
          "take a newer installer: kernel and modules must be of the same version"),
    _sign(r"Failed to retrieve the preconfiguration file|"
          r"The file needed for preconfiguration could not be retrieved",
          "the Debian installer could not fetch its preseed", "check the address in url= and that the network came up"),
    _sign(r"Download debconf preconfiguration file failed", "the Debian installer could not fetch its preseed",
          "check the address in url= and that the network came up"),
    _sign(r"^Failed to process the preconfiguration file|^Error reading the preconfiguration file",
          "the Debian installer could not read its preseed", "check it with debconf-set-selections --checkonly"),
    _sign(r"^There was a problem reading data from the CD-ROM\.", "the Debian installer could not read its CD",
          "check the ISO's checksum, and cdrom_interface"),
    _sign(r"^(?:Bad archive mirror$|No root file system is defined\.)", "the Debian installer stopped with a question",
          "answer it in the preseed"),
    # subiquity (Ubuntu)
    _sign(r"^An error occurred\. Press enter to start a shell", "Ubuntu's installer failed",
          "see the lines above; check user-data against the autoinstall schema"),
    _sign(r"[Mm]alformed autoinstall in '|autoinstall (?:config )?(?:validation|section) failed|"
          r"^autoinstall\b.*\bfailed$",
          "Ubuntu's installer refused its autoinstall file", "check user-data against the autoinstall schema"),
    _sign(r"^Continue with autoinstall\? \(yes\|no\)", "Ubuntu's installer asks whether it may begin",
          "add the word autoinstall to the kernel's command line", standing=True),
    # AutoYaST (openSUSE)
    _sign(r"(?:^|[│┌ ])Error(?:[: ]|$)[\s\S]{0,200}\bAutoYaST (?:profile|control file)|"
          r"\bAutoYaST\b.{0,80}\b(?:[Ee]rror|invalid|failed)\b|An error occurred while (?:parsing|retrieving) the "
          r"(?:AutoYaST profile|control file)", "AutoYaST stopped with an error",
          "check the profile against the schema of that release (xmllint, jing)"),
    # boot loaders and firmware
    _sign(r"^error: no such (?:partition|device: \S+)\.[\s\S]{0,100}^(?:Entering rescue mode|grub rescue>)",
          "GRUB did not find its own files", "check how the boot loader was installed and the order of the disks"),
    _sign(r"^grub rescue> ?_?$", "GRUB did not find its own files",
          "check how the boot loader was installed and the order of the disks", standing=True),
    _sign(r"^error: you need to load the kernel first\.", "GRUB found no kernel where its entry says",
          "check the paths in the boot command and on the medium"),
    _sign(r"^error: no such partition\.?$", "GRUB misses a partition",
          "check how the boot loader was installed and the order of the disks", fatal=False),
    _sign(r"^Could not find kernel image: \S+|^Loading \S+\.\.\. ?failed: .*", "ISOLINUX found no kernel of that name",
          "see what the boot command typed, and what the menu calls its entries"),
    _sign(r"^No bootable device\.?", "the firmware found nothing to boot",
          "check iso_url or the disk, boot order (qemuargs -boot), and whether the medium needs UEFI (efi_boot)"),
    _sign(r"^No more network devices", "the network boot ROM found no server",
          "boot from disk or CD first, or take its ROM away (net_device ...,romfile=)", fatal=False),
    _sign(r"^Shell> ?_?$", "UEFI found nothing to boot and started its shell",
          "check that the medium boots by UEFI, and the boot command", standing=True),
    _sign(r"BdsDxe: No bootable option or device was found\.", "UEFI found nothing to boot",
          "check that the medium boots by UEFI; without efi_boot the machine has a BIOS"),
)  # fmt: skip


def find(lines: Iterable[str], *, standing: bool = True) -> Symptom | None:
    """The first fatal sign in these lines, else the first that is not. `standing`: a prompt at the end counts."""
    shown = "\n".join(_bare(line) for line in lines)
    hint: Symptom | None = None
    for sign in SIGNS:
        if sign.standing and not standing:
            continue
        found = _at_end(sign, shown) if sign.standing else sign.pattern.search(shown)
        if found is None:
            continue
        symptom = Symptom(sign.sentence, sign.advice, sign.fatal, " ".join(found.group().split()))
        if sign.fatal:
            return symptom
        hint = hint or symptom
    return hint


def _bare(line: str) -> str:
    """A line without the frame of a dialog around it."""
    return line.strip(" \t│┃║|█▒░")


def _at_end(sign: Sign, shown: str) -> re.Match[str] | None:
    last = shown.rstrip()[-200:].rpartition("\n")[2]
    return sign.pattern.match(last)


class Watcher:
    """Looks at a guest's serial log and screen, again and again, for signs; cheap when nothing changes."""

    def __init__(self, serial_log: Path, monitor: Monitor) -> None:
        self._serial = SerialLog(serial_log)
        self._screen = Screen(monitor)
        self._looked = 0.0
        self._shown: list[str] = []
        self._last = ""  # what both show at their end
        self._since = time.monotonic()  # when that came
        self._told: set[str] = set()

    def scan(self) -> Symptom | None:
        """A sign that came since the last time. One that isn't fatal is told once.

        A machine that is gone shows nothing: it may have ended as it should, which others know.
        """
        fresh = self._serial.read()
        fresh = self._look() or fresh
        lines = self._serial.text().splitlines()
        self._serial.forget(_OVERLAP)
        standing = self._stands(lines)
        if not fresh and not standing:
            return None
        found = [find(lines, standing=standing), find(self._shown, standing=standing)]
        symptoms = [symptom for symptom in found if symptom and (symptom.fatal or symptom.sentence not in self._told)]
        symptoms.sort(key=lambda symptom: not symptom.fatal)
        self._told |= {symptom.sentence for symptom in symptoms}
        return symptoms[0] if symptoms else None

    def _look(self) -> bool:
        """Look at the screen when it is time; whether it changed."""
        if time.monotonic() - self._looked < _SCREEN_INTERVAL:
            return False
        self._looked = time.monotonic()
        try:
            shown = self._screen.lines()
        except GuestError:
            return False
        changed = shown != self._shown
        self._shown = shown
        return changed

    def _stands(self, lines: Sequence[str]) -> bool:
        """Whether both have ended in the same words for a while: a prompt there is answered by nobody."""
        last = "\n".join([*lines[-2:], *[line for line in self._shown if line.strip()][-2:]])
        if last != self._last:
            self._last, self._since = last, time.monotonic()
        return time.monotonic() - self._since >= STANDING
