"""The boot command's grammar: what Packer reads, what it types although nobody means it, and `<waitfor>`."""

from __future__ import annotations

import pytest

from imagebuilder.console.bootcommand import LONGEST_TEXT, SPECIAL_KEYS, Action, Key, Wait, WaitFor, parse


def outline(text: str) -> list[object]:
    """Tokens as short values: characters and keys as their names, held ones with + and -, waits as numbers."""
    marks = {Action.PRESS: "", Action.ON: "+", Action.OFF: "-"}
    short: list[object] = []
    for token in parse(text).tokens:
        if isinstance(token, Key):
            short.append(marks[token.action] + token.name)
        elif isinstance(token, Wait):
            short.append(token.seconds)
        else:
            short.append((token.text, token.timeout))
    return short


GRAMMAR: dict[str, tuple[str, list[object]]] = {
    "literals": ("aB<", ["a", "B", "<"]),
    "newline": ("a\n", ["a", "\n"]),
    "wait": ("<wait>", [1.0]),
    "seconds": ("<wait5><wait10><wait0>", [5.0, 10.0, 0.0]),
    "durations": ("<wait1m30s><wait500ms><wait1.5s><wait2h>", [90.0, 0.5, 1.5, 7200.0]),
    "special": ("<enter><ENTER><pageUp><pAgEdOwN>", ["enter", "enter", "pageup", "pagedown"]),
    "f keys": ("<f1><f10><f12>", ["f1", "f10", "f12"]),
    "left and its kin": ("<left><leftAlt><leftCtrlOn><leftctrloff>", ["left", "leftalt", "+leftctrl", "-leftctrl"]),
    "held": ("<LEFTCTRLON>c<leftCtrlOff>", ["+leftctrl", "c", "-leftctrl"]),
    "held character": ("<aOn><aOFF><<on><<off>", ["+a", "-a", "+<", "-<"]),
    "new keys": ("<leftCommand><rightOption><menu>", ["leftcommand", "rightoption", "menu"]),
    "double angle": ("<<enter>", ["<", "enter"]),
    "not case sensitive only for keys": ("<Wait>", list("<Wait>")),
    "leading zero": ("<wait05>", list("<wait05>")),
    "fraction": ("<wait1.5>", list("<wait1.5>")),
    "unknown": ("<foo>", list("<foo>")),
    "longer than a key": ("<delete>", list("<delete>")),
    "template": ("{{ .HTTPIP }}", list("{{ .HTTPIP }}")),
    "waitfor": ('<waitfor "boot:">', [("boot:", 300.0)]),
    "waitfor limit": ('<waitfor "boot:" 90s>', [("boot:", 90.0)]),
    "waitfor escapes": (r'<waitfor "a \"b\" \\ >" 1m>', [('a "b" \\ >', 60.0)]),
    "waitfor single quotes": ("<waitfor 'it \"is\"'>x", [('it "is"', 300.0), "x"]),
}


@pytest.mark.parametrize(("text", "tokens"), GRAMMAR.values(), ids=GRAMMAR)
def test_grammar(text: str, tokens: list[object]) -> None:
    assert outline(text) == tokens
    assert not parse(text).problems


@pytest.mark.parametrize("name", SPECIAL_KEYS)
def test_every_special_key_in_every_case(name: str) -> None:
    for spelled in (name, name.lower(), name.upper()):
        assert outline(f"<{spelled}><{spelled}On><{spelled}oFF>") == [
            name.lower(),
            f"+{name.lower()}",
            f"-{name.lower()}",
        ]


PROBLEMS = {
    "negative": ("ab<wait-1m>", 2, "negative"),
    "backwards": ("<wait1m-30s>", 0, "not a duration"),
    "very long": ("<wait100h>", 0, "longer than a day"),
    "absurd": (f"<wait{'9' * 400}h>", 0, "9999"),
    "waitfor nothing": ('<waitfor "  ">', 0, "no text"),
    "waitfor without quotes": ("x<waitfor boot:>", 1, "in quotes"),
    "waitfor unclosed": ('<waitfor "boot:>', 0, "in quotes"),
    "waitfor bare number": ('<waitfor "x" 90>', 0, "write '90s'"),
    "waitfor no time": ('<waitfor "x" 0s>', 0, "no time"),
    "too long": ("x" * (LONGEST_TEXT + 1), LONGEST_TEXT, "too many"),
}


@pytest.mark.parametrize(("text", "offset", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_problems_name_their_place(text: str, offset: int, message: str) -> None:
    found = parse(text).problems
    assert len(found) == 1 and found[0].offset == offset and message in str(found[0])


WARNINGS = {
    "leading zero": ("a<wait05>", 1, "write '<wait5s>'"),
    "capital": ("<Wait>", 0, "write '<wait>'"),
    "capitals": ("<WAIT5>", 0, "write '<wait5s>'"),
    "fraction": ("<wait1.5>", 0, "write '<wait1.5s>'"),
    "space": ("<wait 5>", 0, "write '<wait5s>'"),
    "unknown": ("<foo>", 0, "no key"),
    "misspelt": ("<entre>", 0, "did you mean 'enter'?"),
    "escape": ("<escape>", 0, "did you mean '<esc>'?"),
    "ctrl": ("<ctrlOn>", 0, "did you mean '<leftCtrlOn>'?"),
    "never released": ("x<leftShiftOn>y", 1, "never released"),
    "never held": ("<aOff>", 0, "not held"),
    "foreign": ("xé", 1, "'é' (U+00E9)"),
    "control": ("\x07", 0, "U+0007"),
}


@pytest.mark.parametrize(("text", "offset", "message"), WARNINGS.values(), ids=WARNINGS)
def test_what_packer_swallows_is_said(text: str, offset: int, message: str) -> None:
    command = parse(text)
    assert not command.problems
    assert [warning.offset for warning in command.warnings] == [offset]
    assert message in str(command.warnings[0])


@pytest.mark.parametrize(
    "text",
    [
        "<esc><wait>linux ks=http://{{ .HTTPIP }}:{{ .HTTPPort }}/ks.cfg<enter>",
        "<tab> inst.text console=ttyS0,115200n8<enter><wait5m>",
        "if [ 1 -lt 2 ] && [ 3 > 2 ]; then cat <<EOF\n",
        "a<b and c>d",
        "<wait{{ user `seconds` }}>",
        "<leftAltOn><f2><leftAltOff><spacebar>",
    ],
)
def test_what_is_meant_needs_no_warning(text: str) -> None:
    command = parse(text)
    assert not command.problems and not command.warnings


def test_a_foreign_character_is_said_once() -> None:
    assert len(parse("ééé").warnings) == 1


def test_offsets_point_at_the_tokens() -> None:
    assert [token.offset for token in parse('a<enter><wait><waitfor "x">é').tokens] == [0, 1, 8, 14, 27]
    assert isinstance(parse('<waitfor "x">').tokens[0], WaitFor)
