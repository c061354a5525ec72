"""Typing: key events on a US keyboard, a pace at which no key is lost, real guests that got every character."""

from __future__ import annotations

import string
import time
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.console import keyboard, keypace
from imagebuilder.console.bootcommand import SPECIAL_KEYS, Action, Key, parse
from imagebuilder.console.keypace import QUEUE, RING, Event
from imagebuilder.errors import GuestError, TemplateError
from imagebuilder.ui import Event as UiEvent
from imagebuilder.ui import Ui
from tests import prompts

_QUEUED = {  # what QEMU 7.2 knows (qapi/ui.json), as far as it is used
    *string.ascii_lowercase, *string.digits, "grave_accent", "minus", "equal", "bracket_left", "bracket_right",
    "backslash", "semicolon", "apostrophe", "comma", "dot", "slash", "spc", "ret", "tab", "backspace", "delete",
    "esc", "up", "down", "left", "right", "insert", "home", "end", "pgup", "pgdn", "compose", "alt", "alt_r", "ctrl",
    "ctrl_r", "shift", "shift_r", "meta_l", "meta_r", *(f"f{number}" for number in range(1, 13)),
}  # fmt: skip


class Pc:
    """A PC as QEMU shows it to its monitor: a PS/2 queue that overflows, a BIOS that moves keys to a ring that
    overflows, a program that takes them from there. Each look at it lets `speed` bytes and keys go on."""

    def __init__(self, *, bios: bool = True, ring: bool = True, speed: int = 1, deaf: bool = False, usb: bool = False):
        self.bios, self.ring_used, self.speed, self.deaf, self.usb = bios, ring, speed, deaf, usb
        self.queue: list[Event] = []
        self.ring: list[Event] = []
        self.head = self.tail = 0x1E
        self.taken: list[Event] = []
        self.lost = 0
        self.commands: list[list[Event]] = []

    def execute(self, command: str, arguments: Any = None, timeout: float = 10) -> Any:
        if command == "query-status":
            return {"status": "running"}
        assert command == "input-send-event"
        events = [Event(row["data"]["key"]["data"], row["data"]["down"]) for row in arguments["events"]]
        assert {event.key for event in events} <= _QUEUED
        self.commands.append(events)
        for event in events:
            if sum(queued.size for queued in self.queue) + event.size > QUEUE:
                self.lost += 1
            else:
                self.queue.append(event)
        return {}

    def hmp(self, line: str) -> str:
        self._go_on()
        if line == "info qtree":
            return "bus: main\n  dev: usb-kbd\n" if self.usb else "bus: main\n  dev: ps2-kbd\n"
        if line == "i /b 0x64":
            return f"portb[0x0064] = {0x1D if self.queue and not self.usb else 0x1C:#04x}\n"
        if line == "xp /4bx 0x480":
            return "0000000000000480: 0x1e 0x00 0x3e 0x00\n" if self.bios else "0000000000000480: 0x00 0x00 0x00 0x00\n"
        assert line == "xp /4bx 0x41a"
        return f"000000000000041a: {self.head:#04x} 0x00 {self.tail:#04x} 0x00\n"

    def _go_on(self) -> None:
        if self.deaf:
            return
        for event in self.queue[: self.speed]:
            if not (self.bios and self.ring_used):
                self.taken.append(event)
            elif event.down and event.key not in ("shift", "ctrl", "alt"):
                if len(self.ring) == RING:
                    self.lost += 1
                else:
                    self.ring.append(event)
                    self.tail = self._next(self.tail)
        del self.queue[: self.speed]
        for event in self.ring[: self.speed]:
            self.taken.append(event)
            self.head = self._next(self.head)
        del self.ring[: self.speed]

    @staticmethod
    def _next(pointer: int) -> int:
        return 0x1E if pointer == 0x3C else pointer + 2

    def finish(self) -> list[Event]:
        while self.queue or self.ring:
            self._go_on()
        return self.taken


def type_into(monitor: Any, text: str, **options: Any) -> list[UiEvent]:
    said: list[UiEvent] = []
    waiter = options.pop("waiter", lambda text, timeout: None)
    keyboard.type_command(parse(text), monitor, waiter=waiter, ui=Ui("test", said.append), **options)
    return said


# ---- keys


def test_every_printable_character_has_its_own_key() -> None:
    strokes = {keyboard.stroke(Key(chr(code), Action.PRESS, 0)) for code in range(32, 127)}
    assert len(strokes) == 95 and () not in strokes
    assert {event.key for events in strokes for event in events} <= _QUEUED


@pytest.mark.parametrize(
    ("character", "keys"),
    [
        ("a", "+a -a"),
        ("A", "+shift +a -a -shift"),
        (":", "+shift +semicolon -semicolon -shift"),
        ("~", "+shift +grave_accent -grave_accent -shift"),
        ("\n", "+ret -ret"),
        ("\t", "+tab -tab"),
        (" ", "+spc -spc"),
        ("é", ""),
        ("\x1b", ""),
    ],
)
def test_strokes(character: str, keys: str) -> None:
    assert shown(keyboard.stroke(Key(character, Action.PRESS, 0))) == keys


def shown(events: Any) -> str:
    return " ".join(("+" if event.down else "-") + event.key for event in events)


@pytest.mark.parametrize("name", SPECIAL_KEYS)
def test_every_special_key_is_known(name: str) -> None:
    (down, up) = keyboard.stroke(Key(name.lower(), Action.PRESS, 0))
    assert down.key == up.key and down.key in _QUEUED and (down.down, up.down) == (True, False)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("<leftCtrlOn>c<leftCtrlOff>", "+ctrl +c -c -ctrl"),
        ("<leftCtrlOn><leftAltOn><del>", "+ctrl +alt +delete -delete -alt -ctrl"),
        ("<leftShiftOn>Ab<leftShiftOff>C", "+shift +a -a +b -b -shift +shift +c -c -shift"),
        ("<AOn>b<AOff>", "+shift +a +b -b -a -shift"),
        ("a<aOn>", "+a -a +a -a"),
    ],
    ids=["held", "released at the end", "shift is held already", "held capital", "held letter"],
)
def test_held_keys(text: str, keys: str) -> None:
    pc = Pc()
    type_into(pc, text)
    assert shown(event for command in pc.commands for event in command) == keys


# ---- pace


@pytest.mark.parametrize("speed", [1, 3, 100])
@pytest.mark.parametrize(
    "pc",
    [{}, {"ring": False}, {"bios": False}],
    ids=["BIOS", "operating system started by a BIOS", "UEFI"],
)
def test_nothing_is_lost_however_fast_the_guest_reads(pc: dict[str, bool], speed: int) -> None:
    text = prompts.random_text(300, seed=speed) + "<up><f12><pageDown>" * 20 + "<leftCtrlOn>u<leftCtrlOff>"
    guest = Pc(speed=speed, **pc)
    said = type_into(guest, text)
    taken = [event.key for event in guest.finish() if event.down and event.key not in ("shift", "ctrl")]
    wanted = [
        event.key
        for token in parse(text).tokens
        if isinstance(token, Key)
        for event in keyboard.stroke(token)
        if event.down and event.key not in ("shift", "ctrl")
    ]
    assert guest.lost == 0 and taken == wanted and not said


def test_a_bios_gets_many_keys_at_once_and_uefi_one() -> None:
    pc, uefi = Pc(speed=100), Pc(speed=100, bios=False)
    type_into(pc, "a" * 80)
    type_into(uefi, "aA")
    assert len(pc.commands) == 10
    assert [shown(command) for command in uefi.commands] == ["+a -a", "+shift", "+a -a -shift"]


def test_a_guest_that_reads_nothing_is_told_and_typed_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keypace, "STALLED", 0.2)
    pc = Pc(deaf=True)
    began = time.monotonic()
    said = type_into(pc, "abcdefghijkl")
    assert time.monotonic() - began < 5
    assert len(pc.commands) == 2
    assert [event.kind for event in said] == ["warning"] and "took no key" in said[0].text


def test_a_key_interval_is_kept_after_each_event(monkeypatch: pytest.MonkeyPatch) -> None:
    pc = Pc(speed=100)
    began = time.monotonic()
    type_into(pc, "aB", key_interval=0.05)
    assert time.monotonic() - began >= 6 * 0.05
    assert all(len(command) == 1 for command in pc.commands)
    monkeypatch.setenv("PACKER_KEY_INTERVAL", "50ms")
    began = time.monotonic()
    type_into(Pc(speed=100), "a")
    assert time.monotonic() - began >= 2 * 0.05
    monkeypatch.setenv("PACKER_KEY_INTERVAL", "50")
    with pytest.raises(TemplateError, match="PACKER_KEY_INTERVAL: '50' is not a duration"):
        type_into(pc, "a")


def test_a_usb_keyboard_gets_whole_strokes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keypace, "BLIND", 0.001)
    pc = Pc(speed=1, usb=True)
    type_into(pc, "aB<f1>")
    assert [shown(command) for command in pc.commands] == ["+a -a", "+shift +b -b -shift", "+f1 -f1"]
    assert pc.lost == 0


def test_a_machine_without_ports_is_typed_into_at_a_fixed_pace() -> None:
    class Arm(Pc):
        def hmp(self, line: str) -> str:
            if line.startswith("i "):
                return "unknown command: 'i'\n"
            return super().hmp(line)

    arm = Arm()
    began = time.monotonic()
    type_into(arm, "aB")
    assert time.monotonic() - began >= 6 * keypace.BLIND
    assert len(arm.commands) == 2


# ---- waits


def test_waits_stand_between_keys_and_are_said_when_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyboard, "_SAID", 0.2)
    waited: list[object] = []
    pc = Pc(speed=100)
    began = time.monotonic()
    said = type_into(pc, '<enter><wait200ms>x<waitfor "login:" 90s>y<wait100ms>', waiter=lambda *a: waited.append(a))
    assert time.monotonic() - began >= 0.3
    assert waited == [("login:", 90.0)]
    assert [shown(command) for command in pc.commands] == ["+ret -ret", "+x -x", "+y -y"]
    assert [event.text for event in said] == [
        "Waiting 0.2 s", "Waiting until the guest shows 'login:' (at most 1 min 30 s)",
    ]  # fmt: skip


def test_a_failed_wait_ends_typing() -> None:
    def fail(text: str, timeout: float) -> None:
        raise GuestError("did not come")

    pc = Pc()
    with pytest.raises(GuestError, match="did not come"):
        type_into(pc, 'a<waitfor "x">b', waiter=fail)
    assert shown(pc.commands[-1]) == "+a -a"


def test_a_command_with_problems_is_not_typed() -> None:
    pc = Pc()
    with pytest.raises(TemplateError, match="negative"):
        type_into(pc, "a<wait-1m>")
    assert not pc.commands


def test_keys_are_counted() -> None:
    ui = Ui("test", lambda event: None)
    assert keyboard.type_command(parse("aB<enter>é<wait0>"), Pc(), waiter=lambda *a: None, ui=ui) == 3


# ---- real guests


@pytest.mark.qemu
def test_every_character_reaches_isolinux(tmp_path: Path) -> None:
    iso = prompts.make_iso(tmp_path)
    letters = "".join(chr(code) for code in range(33, 127))
    with prompts.booted(tmp_path, "-cdrom", iso) as guest:
        guest.type('<waitfor "boot:">' + letters.replace("<", "") + "<")
        assert guest.settled() == letters.replace("<", "") + "<"
        guest.type("<leftCtrlOn>u<leftCtrlOff>")
        for seed in range(4):
            text = prompts.random_text(600, seed)
            guest.type(text)
            assert guest.settled() == text
            guest.type("<leftCtrlOn>u<leftCtrlOff><wait500ms>")
        assert not [event for event in guest.events if event.kind == "warning"]


@pytest.mark.qemu
def test_a_usb_keyboard_reaches_isolinux(tmp_path: Path) -> None:
    iso = prompts.make_iso(tmp_path)
    with prompts.booted(tmp_path, "-device", "piix3-usb-uhci", "-device", "usb-kbd", "-cdrom", iso) as guest:
        guest.type('<waitfor "boot:"><wait>linux inst.ks=http://10.0.2.2:8000/')
        assert guest.settled() == "linuxinst.ks=http://10.0.2.2:8000/"


@pytest.mark.qemu
def test_a_guest_that_dies_ends_a_wait(tmp_path: Path) -> None:
    with prompts.booted(tmp_path) as guest:
        guest.monitor.execute("query-status")
        guest.qemu.stop(0.1)
        began = time.monotonic()
        with pytest.raises(GuestError):
            guest.type("<wait30>")
        assert time.monotonic() - began < 3
