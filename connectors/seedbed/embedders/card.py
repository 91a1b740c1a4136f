"""What a model's folder says about itself, read from its JSON files alone: sentence-transformers' `modules.json`
and what it names, else transformers' `config.json`.

Without `modules.json`, decoder-style models (an architecture that ends in `ForCausalLM`) pool the last token's
state, all others the mean over the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from seedbed.errors import ConfigError

_POOLINGS = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl"}
_ACTIVATIONS = {"torch.nn.modules.linear.Identity": "identity", "torch.nn.modules.activation.Tanh": "tanh"}
_UNLIMITED = 1_000_000


@dataclass(frozen=True, slots=True)
class Dense:
    """A projection after pooling; `activation` is identity or tanh."""

    folder: str
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True, slots=True)
class Card:
    """`transformer` and each `Dense.folder` are relative to the model's folder; `limit` counts tokens with the
    special ones, None where the model names none."""

    transformer: str
    pooling: str
    dense: tuple[Dense, ...]
    dimensions: int
    limit: int | None
    lower_case: bool
    parameters_dtype: str


def read_card(path: Path) -> Card:
    """Raises ConfigError for a file that is missing or not JSON, and for a module that is not known here."""
    modules = _modules(path)
    transformer = modules[0][1] if modules else ""
    home = path / transformer
    config = _json(home / "config.json")
    if config.get("is_encoder_decoder"):
        raise _unusable(home / "config.json", "is of an encoder-decoder model", "an encoder or a decoder")
    settings = _json(home / "sentence_bert_config.json", missing={})
    dense = tuple(_dense(path, folder) for kind, folder in modules if kind == "Dense")
    pooling = next((_pooling(path / folder) for kind, folder in modules if kind == "Pooling"), _default(config))
    return Card(
        transformer=transformer,
        pooling=pooling,
        dense=dense,
        dimensions=dense[-1].out_features if dense else _width(config, home),
        limit=_limit(settings, config, home),
        lower_case=bool(settings.get("do_lower_case")),
        parameters_dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
    )


def model_type(path: Path) -> str:
    """What kind of model a folder holds, in transformers' words; empty where it does not say at its top."""
    return str(_json(path / "config.json", missing={}).get("model_type") or "")


def _modules(path: Path) -> list[tuple[str, str]]:
    """(class, folder) in order; empty without modules.json."""
    listed = _json(path / "modules.json", missing=[])
    modules = [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in listed]
    kinds = [kind for kind, _ in modules if kind != "Dropout"]
    if modules and kinds[0] != "Transformer":
        raise _unusable(path / "modules.json", f"begins with {kinds[0]}", "a model that begins with Transformer")
    for kind in kinds[1:]:
        if kind not in ("Pooling", "Dense", "Normalize"):
            raise _unusable(path / "modules.json", f"names the module {kind}", "Transformer, Pooling, Dense, Normalize")
    return modules


def _pooling(folder: Path) -> str:
    config = _json(folder / "config.json")
    modes = config.get("pooling_mode") or [mode for old, mode in _OLD_POOLINGS.items() if config.get(old)]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise _unusable(folder / "config.json", f"pools by {' and '.join(modes) or 'nothing'}", ", ".join(_POOLINGS))
    if config.get("include_prompt") is False:
        raise _unusable(folder / "config.json", "leaves the prompt out of the pooling", "models that pool it")
    return _POOLINGS[modes[0]]


def _default(config: dict[str, Any]) -> str:
    architectures = config.get("architectures") or [""]
    return "last" if str(architectures[0]).endswith("ForCausalLM") else "mean"


def _dense(path: Path, folder: str) -> Dense:
    config = _json(path / folder / "config.json")
    activation = _ACTIVATIONS.get(str(config.get("activation_function")))
    if activation is None or config.get("use_residual"):
        raise _unusable(
            path / folder / "config.json",
            f"has the activation {config.get('activation_function')}, or a residual",
            "Identity and Tanh without one",
        )
    return Dense(folder, int(config["out_features"]), bool(config.get("bias", True)), activation)


def _width(config: dict[str, Any], home: Path) -> int:
    text = config.get("text_config") or config
    for name in ("hidden_size", "d_model", "n_embd", "dim"):
        if isinstance(text.get(name), int):
            return int(text[name])
    raise _unusable(home / "config.json", "does not say how wide the model is", "a `hidden_size`")


def _limit(settings: dict[str, Any], config: dict[str, Any], home: Path) -> int | None:
    if settings.get("max_seq_length"):
        return int(settings["max_seq_length"])
    limits = []
    positions = (config.get("text_config") or config).get("max_position_embeddings")
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - 2 if config.get("model_type") in _OFFSET_POSITIONS else positions)
    tokenizer = _json(home / "tokenizer_config.json", missing={}).get("model_max_length")
    if isinstance(tokenizer, int) and 0 < tokenizer < _UNLIMITED:
        limits.append(tokenizer)
    return min(limits, default=None)


def _json(file: Path, missing: Any = None) -> Any:
    try:
        return orjson.loads(file.read_bytes())
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise ConfigError(
            f"the model's folder has no {file.name}: {file}",
            setting="embedder.url",
            hint="name a folder that is complete",
        ) from None
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}", setting="embedder.url", hint="download it again") from error


def _unusable(file: Path, why: str, known: str) -> ConfigError:
    return ConfigError(f"{file} {why}", setting="embedder.url", hint=f"usable: {known}")
