"""The demo's part by API: the same rows through an emulated Ark, with a budget that is hit and a run that goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from seedbed import Pipeline, load
from seedbed.errors import Fatal
from seedbed.report import SyncReport
from seedbed.testing.ark import ArkEmulator, Settings

FILE = """\
name = "functions-emulated"

[source]
url = "pgvector+embedded:./postgres"
table = "functions"

[content]
text = "{module}.{name}\\n{documentation}"

[embedder]
url = "ark:doubao-embedding-vision-250615?endpoint=${ARK_ENDPOINT}"
api_key = "${ARK_API_KEY}"
dimensions = 1024

[[sink]]
url = "pgvector+embedded:./postgres"
collection = "function_vectors_emulated"
payload = ["module", "name"]

[prices]
text = 0.70                # a million tokens
currency = "CNY"
"""
MOST_TOKENS = 100_000
BUDGET = f"""
[limits]
tokens = {MOST_TOKENS}
"""

Say = Callable[[str], None]


def run(folder: Path, say: Say) -> None:
    """Leaves a second pipeline in `folder`. Its collection is the emulator's: a real key wants one of its own."""
    file = folder / "functions-emulated.toml"
    emulator = ArkEmulator(Settings(latency=0.02))
    with emulator.serving() as endpoint, _environment(ARK_ENDPOINT=endpoint, ARK_API_KEY="any-key"):
        file.write_text(FILE, encoding="utf-8")
        say(f"$ seedbed plan {file}")
        plan = load(file).plan()
        least, most = plan.tokens_range or (plan.tokens or 0,) * 2
        say(f"{plan.new:,} new, about {plan.tokens:,} tokens (estimated {least:,} to {most:,}), {plan.cost:.2f} CNY")
        file.write_text(FILE + BUDGET, encoding="utf-8")
        say(f"\n$ seedbed sync {file}        # with [limits] tokens = 100000")
        stopped = _sync(load(file), say)
        file.write_text(FILE, encoding="utf-8")
        say(f"\n$ seedbed sync {file}        # without a limit")
        _sync(load(file), say)
        texts = len(set(emulator.texts))
        say(f"\nThe service was asked {emulator.calls:,} times for {texts:,} texts: nothing was paid for twice.")
    # In a folder of an earlier demo most was paid for then, and the budget suffices.
    expected = 5 if (plan.tokens or 0) > MOST_TOKENS else 0
    if stopped.exit_code != expected or emulator.calls != texts:
        raise Fatal(f"the demo expected a budget to stop it: {stopped.as_dict()}, {emulator.calls} calls")


def _sync(pipeline: Pipeline, say: Say) -> SyncReport:
    report = pipeline.sync()
    cost = f", {report.cost:.4f} {report.currency}" if report.cost is not None else ""
    say(
        f"{report.read:,} read, {report.embedded:,} embedded, {report.tokens:,} tokens{cost} in {report.seconds:.1f} s"
        f" (exit {report.exit_code})"
    )
    if report.refused is not None:
        say(f"seedbed: {report.refused.message}\n  → {report.refused.hint}")
    return report


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
