"""Types a boot command on a US keyboard, over QMP."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from imagebuilder.console.bootcommand import Action, BootCommand, Key, Wait, WaitFor, typable
from imagebuilder.console.keypace import Event, Keyboard, Monitor, Stroke
from imagebuilder.errors import Problem, TemplateError
from imagebuilder.options import seconds
from imagebuilder.ui import Ui, duration

_SAID = 5.0  # seconds; shorter waits go unsaid

# US keyboard: character -> QKeyCode (qapi/ui.json), and the characters that need Shift
_PLAIN = {
    "`": "grave_accent", "-": "minus", "=": "equal", "[": "bracket_left", "]": "bracket_right", "\\": "backslash",
    ";": "semicolon", "'": "apostrophe", ",": "comma", ".": "dot", "/": "slash", " ": "spc", "\n": "ret", "\t": "tab",
    **{character: character for character in "abcdefghijklmnopqrstuvwxyz0123456789"},
}  # fmt: skip
_SHIFTED = dict(zip('~!@#$%^&*()_+{}|:"<>?', "`1234567890-=[]\\;',./", strict=True))

# Names of bootcommand.SPECIAL_KEYS in lower case -> QKeyCode; Packer's Mac names are Alt, as in its VNC key symbols
_NAMED = {
    "bs": "backspace", "del": "delete", "enter": "ret", "return": "ret", "spacebar": "spc", "pageup": "pgup",
    "pagedown": "pgdn", "menu": "compose", "leftalt": "alt", "rightalt": "alt_r", "leftctrl": "ctrl",
    "rightctrl": "ctrl_r", "leftshift": "shift", "rightshift": "shift_r", "leftsuper": "meta_l",
    "rightsuper": "meta_r", "leftcommand": "alt", "rightcommand": "alt_r", "leftoption": "alt", "rightoption": "alt_r",
    **{name: name for name in ("esc", "tab", "up", "down", "left", "right", "insert", "home", "end")},
    **{f"f{number}": f"f{number}" for number in range(1, 13)},
}  # fmt: skip


def stroke(key: Key, held: Sequence[str] = ()) -> Stroke:
    """The events of a token; none for a character that is on no US keyboard. `held`: codes of keys that are down."""
    code, shifted = _code(key.name)
    if code is None:
        return ()
    shift = shifted and not {"shift", "shift_r"} & set(held)
    before = (Event("shift", True),) if shift else ()
    after = (Event("shift", False),) if shift else ()
    match key.action:
        case Action.PRESS:
            return (*before, Event(code, True), Event(code, False), *after)
        case Action.ON:
            return (*before, Event(code, True))
        case Action.OFF:
            return (Event(code, False), *((Event("shift", False),) if shifted else ()))


def _code(name: str) -> tuple[str | None, bool]:
    """QKeyCode of a character or a special key, and whether it needs Shift."""
    if len(name) > 1:
        return _NAMED[name], False
    if not typable(name):
        return None, False
    if "A" <= name <= "Z":
        return name.lower(), True
    return _PLAIN[_SHIFTED.get(name, name)], name in _SHIFTED


def type_command(
    command: BootCommand,
    monitor: Monitor,
    *,
    waiter: Callable[[str, float], object],
    ui: Ui,
    key_interval: float | None = None,
) -> int:
    """Type it all and return the number of keys typed, when the guest has taken the last of them.

    `waiter(text, timeout)` returns when the text was shown. `key_interval`: seconds after each key event (default:
    PACKER_KEY_INTERVAL, else none). Raises TemplateError for a command with problems, GuestError when QEMU is gone.
    """
    if command.problems:
        raise TemplateError([Problem(f"boot_command: {problem}") for problem in command.problems])
    keyboard = Keyboard(monitor, ui, _interval(key_interval))
    count = 0
    pending: list[Stroke] = []
    held: list[str] = []
    for token in command.tokens:
        if isinstance(token, Key):
            events = stroke(token, held)
            count += any(event.down for event in events)
            _follow(events, held)
            pending.append(events)
            continue
        keyboard.type(pending)
        pending = []
        _wait(token, monitor, waiter, ui)
    keyboard.type([*pending, *((Event(code, False),) for code in reversed(held))])
    return count


def _interval(given: float | None) -> float:
    if given is not None:
        return given
    try:
        return max(0.0, seconds(os.environ.get("PACKER_KEY_INTERVAL") or "0"))
    except ValueError as error:
        raise TemplateError(f"PACKER_KEY_INTERVAL: {error}") from None


def _follow(events: Stroke, held: list[str]) -> None:
    """Keep track of what is down."""
    for event in events:
        if event.down:
            held.append(event.key)
        elif event.key in held:
            held.remove(event.key)


def _wait(token: Wait | WaitFor, monitor: Monitor, waiter: Callable[[str, float], object], ui: Ui) -> None:
    if isinstance(token, WaitFor):
        ui.message(f"Waiting until the guest shows '{token.text}' (at most {duration(token.timeout)})")
        waiter(token.text, token.timeout)
        return
    if token.seconds >= _SAID:
        ui.message(f"Waiting {duration(token.seconds)}")
    end = time.monotonic() + token.seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.5))
        if left > 0.5:
            monitor.execute("query-status")  # raises when QEMU is gone
