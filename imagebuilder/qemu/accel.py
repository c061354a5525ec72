"""Which accelerator really works here: a `/dev/kvm` that opens, and even runs firmware, is no proof.

A guest of 4 KiB (accel.S) is run under KVM with a time limit. It uses what an operating system uses: long mode, page
faults, ring 3, SSE, timer interrupts. The answer is kept until the machine boots anew, QEMU or `/dev/kvm` change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from imagebuilder import paths, process

log = logging.getLogger(__name__)

TIME_LIMIT = 5.0  # seconds; the tiny guest takes 0.1 s under TCG
_PASSED = 33  # QEMU's exit code when the guest wrote 0x10 to isa-debug-exit
KVM_DEVICE = Path("/dev/kvm")

_GUEST = bytes.fromhex(
    "fafc31c08ed0bc0080ba0204b072ee66b8010000800fa2ba0204b063eeb800108ec031ff6631c0b9001466f3ab2666c706000007"
    "1001002666c706001007200100bf002066b8870000002666890566050000200083c70881ff402072edb800ff8ed8be4002bf0030"
    "b95000f3a4660f011690020f20c00c010f22c066ea83f00f00080066b810008ed88ec08ed0bc0080000066ba0204b070eeb011e6"
    "20b011e6a0b020e621b028e6a1b004e621b002e6a1b001e621b001e6a1b0fee621b0ffe6a1b034e643b09ce640b02ee640c70550"
    "03e0fe00070000c705f000e0feff01000066ba0204b074ee0f20e00d200600000f22e0b8000001000f22d8b9800000c00f320d01"
    "0100000f3066ba0204b06dee0f20c083e0fb0d020001800f22c0ea25f10f00180066ba0204b06ceebc00000200b81ef20f00b906"
    "000000e8be000000b825f20f00b90e000000e8af000000b836f20f00b920000000e8a00000000f011d3101000066b840000f00d8"
    "0f0b66ba0204b075eebb000000078b0366ba0204b066eeb9810000c031c0ba180023000f30ffc1b8baf10f0031d20f30b9840000"
    "c0b8000200000f30488d0d0900000041bb02000000480f070f0566ba0204b073ee66480f6ec0660fd4c00f3166ba0204b078eeb9"
    "80841e00ffc975fc66ba0204b077ee31edfbf483fd0372fafa66ba0204b069ee66baf400b010eef4ebfdc1e10481c10040010066"
    "890166c74102180066c74104008ec1e81066894106c3488304240248cf4883c408c70425c02101008700200048cf50b020e62058"
    "ffc548cf0000000000000000ffff0000009bcf00ffff00000093cf00ffff0000009baf00ffff00000093cf000000000000000000"
    "00000000000000000000000000000000670000500189000000000000000000004f00003001000f02004001"
)
_RESET = bytes.fromhex("e90df0")  # jmp to f000:f000, at f000:fff0

_STEPS = "rcptmlufsxwi"
_NEXT_STEP = (
    "running in real mode", "CPUID", "entering protected mode", "setting up the timer", "reading and writing MSRs",
    "entering long mode", "an invalid opcode", "a page fault", "ring 3", "SSE", "a short loop", "timer interrupts",
    "its end",
)  # fmt: skip

_TARGETS = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm"), "ppc64le": ("ppc64",)}


@dataclass(frozen=True)
class Choice:
    """The accelerator to use. `warning`: the one line to say when it is not what one would have expected.

    `cpu_model`: the fullest CPU model that is known to work with it; QEMU's own default lacks what CentOS 9 needs.
    """

    name: str
    reason: str
    warning: str | None = None
    cpu_model: str | None = None


@dataclass(frozen=True)
class Proof:
    """What running a guest under KVM has shown; `host_cpu`: `-cpu host` works too."""

    usable: bool
    reason: str
    host_cpu: bool = False


def choose(requested: str | None, binary: str, *, force: bool = False) -> Choice:
    """The accelerator for a QEMU binary: KVM when it was proved to work, else TCG.

    `requested`: what the template says; with `force` it is taken unproved. Only KVM can be proved: anything else that
    was asked for is taken as it is.
    """
    if requested == "tcg" or (requested is None and force):
        return Choice("tcg", "asked for" if requested else "the default", cpu_model="max")
    if requested not in (None, "kvm"):
        return Choice(requested, "asked for")
    if force:
        return Choice("kvm", "asked for, unproved", cpu_model="host")
    proof = prove_kvm(binary)
    if proof.usable:
        return Choice("kvm", proof.reason, cpu_model="host" if proof.host_cpu else None)
    warning = f"KVM can't be used: {proof.reason}; using TCG (emulation), which is several times slower"
    return Choice("tcg", proof.reason, warning, cpu_model="max")


def prove_kvm(binary: str) -> Proof:
    """Whether KVM runs guests of this QEMU binary; from what was kept, or by trying (0.2 s, at most 2 x TIME_LIMIT)."""
    target = _target(binary)
    if target not in _TARGETS.get(platform.machine(), (platform.machine(),)):
        return Proof(False, f"this machine ({platform.machine()}) can't run {target} guests by itself")
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        joining = "; join the group 'kvm' to use it" if isinstance(error, PermissionError) else ""
        return Proof(False, f"{KVM_DEVICE} can't be opened: {error.strerror}{joining}")
    key = _key(binary)
    kept = _read().get(key)
    if kept is not None:
        return kept
    proof, final = _try_guest(binary) if target in _TARGETS["x86_64"] else _try_start(binary)
    log.debug("KVM under %s: %s", binary, proof)
    if final:
        _write(key, proof)
    return proof


def guest_firmware() -> bytes:
    """The 64 KiB of firmware that hold the tiny guest (its source is accel.S)."""
    page = _GUEST.ljust(0xFF0, b"\0") + _RESET.ljust(16, b"\xf4")
    return page.rjust(0x10000, b"\xff")


def run_guest(binary: str, accelerator: str, cpu_model: str | None = None) -> tuple[int | None, str, str]:
    """Run the tiny guest: QEMU's exit code (None: it hung), the letters of the steps it passed, QEMU's last line."""
    with process.temporary_directory() as directory:
        firmware, steps = directory / "guest.bin", directory / "steps"
        firmware.write_bytes(guest_firmware())
        argv: list[str | os.PathLike[str]] = [
            binary, "-machine", f"pc,accel={accelerator}", *(["-cpu", cpu_model] if cpu_model else []), "-m", "16",
            "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot", "-bios", firmware,
            "-chardev", f"file,id=steps,path={steps}", "-device", "isa-debugcon,iobase=0x402,chardev=steps",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
        ]  # fmt: skip
        code, said = None, ""
        with contextlib.suppress(TimeoutError):
            done = process.run(argv, timeout=TIME_LIMIT, check=False)
            code, said = done.returncode, done.stderr
        passed = steps.read_text(encoding="ascii", errors="replace") if steps.exists() else ""
    return code, passed, (said.strip().splitlines() or [""])[-1]


def _try_guest(binary: str) -> tuple[Proof, bool]:
    """Run the guest with QEMU's default CPU, then with the host's; and whether the answer is one to keep."""
    program = shutil.which("qemu-system-x86_64") or binary  # i386 has no long mode, and the same KVM
    code, passed, said = run_guest(program, "kvm")
    if code == _PASSED:
        host_code, _, _ = run_guest(program, "kvm", "host")
        return Proof(True, "a tiny guest ran under KVM", host_cpu=host_code == _PASSED), True
    if code not in (None, 0):  # QEMU gave up by itself: someone else may hold KVM just now
        return Proof(False, f"QEMU says '{said}'" if said else f"QEMU ended with exit code {code}"), False
    at = _NEXT_STEP[len(passed) if _STEPS.startswith(passed) else 0]
    how = "hung" if code is None else "reset"
    return Proof(False, f"{KVM_DEVICE} opens, but a tiny guest {how} at {at}"), True


def _try_start(binary: str) -> tuple[Proof, bool]:
    """For other processors there is no tiny guest: QEMU must at least be able to make an empty machine."""
    argv = [binary, "-machine", "none,accel=kvm", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio"]
    try:
        done = process.run(argv, input=b"quit\n", timeout=TIME_LIMIT, check=False)
    except TimeoutError:
        return Proof(False, "QEMU hung while it set up KVM"), True
    if done.returncode != 0:
        return Proof(False, f"QEMU says '{(done.stderr.strip().splitlines() or [''])[-1]}'"), False
    return Proof(True, "QEMU could set up KVM"), True


def _target(binary: str) -> str:
    """The processor a QEMU binary emulates; `qemu-kvm` and its like run what the host is."""
    prefix, _, target = Path(binary).name.partition("qemu-system-")
    return target.partition("-")[0] if not prefix and target else platform.machine()


def _key(binary: str) -> str:
    """Everything that can change the answer."""
    program = Path(shutil.which(binary) or binary).resolve()
    facts = [platform.release(), str(program)]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    for path in (program, KVM_DEVICE):
        with contextlib.suppress(OSError):
            found = path.stat()
            device = stat.S_ISCHR(found.st_mode)  # a device's times change whenever it is used
            changed = "" if device else f"{found.st_size} {found.st_mtime_ns}"
            facts.append(f"{path} {found.st_ino} {found.st_mode:o} {found.st_uid} {found.st_gid} {changed}")
    facts.append(hashlib.sha256(_GUEST).hexdigest())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _kept_file() -> Path:
    return paths.cache_directory() / "accel.json"


def _read() -> dict[str, Proof]:
    """Answers that were kept; a file that can't be understood is as good as none."""
    try:
        return {key: Proof(**row) for key, row in json.loads(_kept_file().read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(key: str, proof: Proof) -> None:
    """Keep an answer; a cache that can't be written only costs the next proof."""
    target = _kept_file()
    rows = {name: asdict(known) for name, known in [*_read().items(), (key, proof)][-8:]}
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        with process.temporary_path(target.with_name(f"accel.json.{os.getpid()}")) as aside:
            aside.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            aside.replace(target)
