"""The model families behind the Ark API, in one table: sizes, limits, and how each is told what a text is for.

Source: the Volcengine Ark and BytePlus ModelArk documentation of the multimodal embedding API, and the published
evaluation code of Seed-1.6-Embedding.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from seedbed.content import Kind
from seedbed.embedders.options import RemoteSettings
from seedbed.errors import ConfigError

VOLCENGINE = "https://ark.cn-beijing.volces.com/api/v3"
BYTEPLUS = "https://ark.ap-southeast.bytepluses.com/api/v3"

QUERY_PREFIX = "根据这个问题，找到能回答这个问题的相应文本或图片："
"""The documentation's own for general retrieval."""


@dataclass(frozen=True, slots=True)
class Family:
    """`prompting`: the task is put before a query's text (documents go bare), or stands in a field of its own."""

    prompting: Literal["prefix", "field"]
    endpoint: str = VOLCENGINE
    dimensions: tuple[int, ...] = (1024, 2048)
    rpm: int = 15_000
    tpm: int = 1_200_000


FAMILIES: Mapping[str, Family] = {
    "doubao-embedding-vision-250615": Family("prefix"),
    "doubao-embedding-vision-251215": Family("field"),
    "skylark-embedding-vision-250615": Family("prefix", BYTEPLUS),
    "skylark-embedding-vision-251215": Family("field", BYTEPLUS),
}


def family_of(model: str, named: str | None) -> str:
    """The family's name. A model's id is its family's; of an account's endpoint id only its owner knows it.

    Raises ConfigError where it is not known.
    """
    name = named or model
    if name in FAMILIES:
        return name
    if named is None and model.startswith("ep-"):
        raise ConfigError(
            f"{model} is an endpoint of an account, which does not tell what model is behind it",
            setting="embedder.family",
            hint=f"say it: family = {next(iter(FAMILIES))!r}",
        )
    near = difflib.get_close_matches(name, FAMILIES, n=1)
    raise ConfigError(
        f"no model {name!r} of Ark is known here",
        setting="embedder.family" if named else "embedder.url",
        hint=f"did you mean {near[0]!r}?"
        if near
        else f"known: {', '.join(FAMILIES)}; or say what it is like: family = …",
    )


@dataclass(frozen=True, slots=True)
class Prompting:
    """What goes before a text of one kind, and what into the field `instructions`, where `{}` stands for the kinds that
    a content is of."""

    prefix: str = ""
    instructions: str | None = None

    @classmethod
    def of(cls, family: Family, settings: RemoteSettings, kind: Kind, target: str = "text") -> Prompting:
        """`target` names the kinds of the documents."""
        said = settings.instruction if kind == "document" else settings.query_instruction
        if family.prompting == "prefix":
            return cls(said or ("" if kind == "document" else QUERY_PREFIX))
        if kind == "document":
            return cls(instructions=f"Instruction:{said or 'Compress the {} into one word.'}\nQuery:")
        return cls(instructions=f"Target_modality: {target}.\nInstruction:{said or QUERY_PREFIX}\nQuery:")

    def text(self, text: str) -> str:
        return self.prefix.replace("{text}", text) if "{text}" in self.prefix else self.prefix + text
