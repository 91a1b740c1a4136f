"""An emulated Ark in a process of its own: prints its address, and at the end of its input what it answered when."""

from __future__ import annotations

import json
import sys

from seedbed.testing.ark import ArkEmulator


def main() -> None:
    emulator = ArkEmulator.from_url(sys.argv[1])
    with emulator.serving() as url:
        print(url, flush=True)
        sys.stdin.read()
        texts = len(set(emulator.texts)), len(emulator.texts)
        print(
            json.dumps({"answered": emulator.answered_at, "refused": emulator.refused_at, "texts": texts}), flush=True
        )


if __name__ == "__main__":
    main()
