"""Whatever is in a boot command, it is read to the end and never raises; what is typed is what was written."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.console.bootcommand import LONGEST_TEXT, SPECIAL_KEYS, Action, Key, Wait, WaitFor, parse
from imagebuilder.console.keyboard import stroke

PIECES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["<", ">", "<<", "<wait", "<waitfor ", '"', "\\", "On>", "off>", "-", "0", "5", "ms", "m", "é", "\n", " "]
    ),
    st.sampled_from([f"<{name}>" for name in SPECIAL_KEYS]),
    st.sampled_from(SPECIAL_KEYS).map(lambda name: f"<{name}On>"),
    st.builds("<wait{}>".format, st.text("0123456789.-nsmuhµ", max_size=12)),
    st.builds('<waitfor "{}" {}>'.format, st.text(max_size=6), st.text("0123456789.-smh", max_size=6)),
)
COMMANDS = st.lists(PIECES, max_size=30).map("".join)


@given(COMMANDS)
@settings(max_examples=400, deadline=None)
def test_everything_is_read(text: str) -> None:
    command = parse(text)
    offsets = [token.offset for token in command.tokens]
    assert offsets == sorted(set(offsets))
    assert all(0 <= offset < len(text) for offset in offsets)
    for remark in (*command.problems, *command.warnings):
        assert 0 <= remark.offset < len(text) and str(remark)


@given(COMMANDS)
@settings(max_examples=400, deadline=None)
def test_every_token_can_be_carried_out(text: str) -> None:
    command = parse(text)
    for token in command.tokens:
        if isinstance(token, Key):
            downs = sum(event.down for event in stroke(token)) - sum(not event.down for event in stroke(token))
            assert downs == 0 or token.action is not Action.PRESS
        elif isinstance(token, Wait):
            assert 0 <= token.seconds <= 86400
        else:
            assert isinstance(token, WaitFor) and token.text.strip() and 0 < token.timeout <= 86400


@given(st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=200))
@settings(max_examples=200, deadline=None)
def test_text_without_angles_is_typed_as_it_stands(text: str) -> None:
    command = parse(text)
    assert "".join(token.name for token in command.tokens if isinstance(token, Key)) == text
    assert not command.problems


@pytest.mark.parametrize(
    "piece", ["<", '<waitfor "', "<wait1s", "<wait1s1s", "<a", '<waitfor "\\\\', "<wait-1s>", "<foo>"]
)
def test_long_texts_take_linear_time(piece: str) -> None:
    began = time.process_time()
    parse(piece * (LONGEST_TEXT // len(piece)))
    assert time.process_time() - began < 8
