"""Texts that no tokenizer takes."""

from __future__ import annotations

from collections.abc import Sequence


def unreadable(prompts: Sequence[str]) -> dict[int, str]:
    """Texts that no tokenizer takes."""
    found = {}
    for number, prompt in enumerate(prompts):
        try:
            prompt.encode()
        except UnicodeEncodeError:
            found[number] = "the text holds a lone surrogate, which is no Unicode character"
    return found
