#!/usr/bin/env python3
"""How fast a boot command is typed at ISOLINUX's prompt, and whether all of it arrives: ours beside Packer's pace.

    .venv/bin/python benchmarks/typing_speed.py [--characters 5600] [--hogs 2]

Packer waits 100 ms after each key event: 200 ms for a character, 400 ms for one with Shift. --hogs: processes that
keep the processors busy meanwhile.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tests import prompts  # noqa: E402

LINE = 700  # characters that fit on the screen behind the prompt
PACKER = 0.1  # seconds, boot_key_interval's default


def measure(guest: prompts.Prompt, characters: int, interval: float | None) -> tuple[float, int]:
    """Characters a second, and lines that did not stand on the screen as they were typed."""
    wrong, spent = 0, 0.0
    for seed, start in enumerate(range(0, characters, LINE)):
        text = prompts.random_text(min(LINE, characters - start), seed)
        began = time.monotonic()
        guest.type(text, key_interval=interval)
        spent += time.monotonic() - began
        wrong += guest.settled() != text
        guest.type("<leftCtrlOn>u<leftCtrlOff><wait>")
    return characters / spent, wrong


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--characters", type=int, default=5600)
    arguments.add_argument("--hogs", type=int, default=0)
    given = arguments.parse_args()
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.hogs)]
    try:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            with prompts.booted(directory, "-cdrom", prompts.make_iso(directory)) as guest:
                guest.wait_for("boot:")
                for title, count, interval in (("imgbuild", given.characters, None), ("100 ms", 60, PACKER)):
                    rate, wrong = measure(guest, count, interval)
                    print(f"{title:9} {count:5} characters  {rate:7.1f}/s  {wrong} lines wrong")
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


if __name__ == "__main__":
    main()
