"""The loaded model: token ids in, pooled float32 vectors out. The only module here that imports torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional

from seedbed.embedders.card import Card, Dense
from seedbed.errors import ConfigError
from seedbed.protocols import Vectors

if TYPE_CHECKING:
    from collections.abc import Iterator

Ids = Sequence[Sequence[int]]


class Model:
    """A transformer with its pooling and projections. Raises ConfigError where the folder cannot be loaded."""

    def __init__(self, folder: Path, card: Card, device: torch.device, dtype: torch.dtype, attention: str = "") -> None:
        self.card = card
        self.device = device
        self._transformer = _load(folder / card.transformer, dtype, attention).to(device).eval()
        self._dense = [_load_dense(folder, dense, device) for dense in card.dense]
        self._pad = getattr(self._transformer.config, "pad_token_id", None) or 0

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._transformer.dtype
        return dtype

    def to(self, dtype: torch.dtype) -> None:
        """Changes what is stored with the model and no more: `module.to` would round the frequencies of rotary
        positions too, which are kept in float32, and no change back would mend them."""
        for tensor in self._transformer.state_dict(keep_vars=True).values():
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)

    def weights(self) -> dict[str, torch.Tensor]:
        """What is stored with the model, as it is, for `restore` after a change of format."""
        return {name: tensor.detach() for name, tensor in self._transformer.state_dict(keep_vars=True).items()}

    def restore(self, weights: dict[str, torch.Tensor]) -> None:
        self.to(next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point()))
        self._transformer.load_state_dict(weights)

    @torch.inference_mode()
    def vectors(self, ids: Sequence[Any], dimensions: int) -> Vectors:
        """float32 (n, dimensions): cut first (Matryoshka), then unit length. Rows that the model spoils are NaN."""
        lengths = [len(row) for row in ids]
        inputs, mask = self._padded(ids, lengths)
        hidden = self._transformer(input_ids=inputs, attention_mask=mask).last_hidden_state
        pooled = _pool(hidden, mask, lengths, self.card.pooling)
        for weight, bias, activation in self._dense:
            pooled = functional.linear(pooled, weight, bias)
            pooled = torch.tanh(pooled) if activation == "tanh" else pooled
        units = functional.normalize(pooled[:, :dimensions], dim=1)
        return np.ascontiguousarray(units.cpu().numpy(), np.float32)

    def _padded(self, ids: Ids, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """On the right, to the longest. No mask where nothing is padded: attention is faster without one."""
        padded = np.full((len(ids), max(lengths)), self._pad, np.int64)
        for row, tokens in enumerate(ids):
            padded[row, : len(tokens)] = tokens
        inputs = torch.from_numpy(padded).to(self.device)
        if min(lengths) == max(lengths):
            return inputs, None
        mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
        return inputs, torch.from_numpy(mask.astype(np.int64)).to(self.device)


def _pool(hidden: torch.Tensor, mask: torch.Tensor | None, lengths: list[int], how: str) -> torch.Tensor:
    """(n, tokens, width) → (n, width), in float32."""
    if how == "cls":
        return hidden[:, 0].float()
    if how == "last":
        ends = torch.tensor(lengths, device=hidden.device) - 1
        return hidden[torch.arange(len(lengths), device=hidden.device), ends].float()
    hidden = hidden.float()
    if how == "max":
        return (hidden if mask is None else hidden.masked_fill(mask[..., None] == 0, -torch.inf)).amax(1)
    if mask is None:
        return hidden.mean(1)
    return torch.einsum("nth,nt->nh", hidden, mask.float()) / mask.sum(1, keepdim=True)


def _load(folder: Path, dtype: torch.dtype, attention: str = "") -> Any:
    """`attention` is transformers' name of an implementation, its own choice where empty."""
    chosen = {"attn_implementation": attention} if attention else {}
    with _quiet():
        try:
            model, told = transformers.AutoModel.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True, **chosen
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(
                f"transformers {transformers.__version__} cannot load {folder}: {first}",
                setting="embedder.url",
                hint="name a complete folder of a model that transformers knows without code of its own",
            ) from error
    # A pooler that was not stored is made up and never asked.
    missing = sorted(name for name in told["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ConfigError(
            f"{folder} lacks {len(missing)} of the model's weights, first {missing[0]}",
            setting="embedder.url",
            hint="download it again: transformers would go on with random numbers in their place",
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading reports and progress bars would be torn into the command's own output."""
    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load_dense(folder: Path, dense: Dense, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None, str]:
    safe, old = (folder / dense.folder / name for name in ("model.safetensors", "pytorch_model.bin"))
    if not safe.is_file() and not old.is_file():
        raise ConfigError(f"{folder / dense.folder} holds no weights", setting="embedder.url", hint="download it again")
    state = load_file(safe) if safe.is_file() else torch.load(old, map_location="cpu", weights_only=True)
    bias = state["linear.bias"].float().to(device) if dense.bias else None
    return state["linear.weight"].float().to(device), bias, dense.activation


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__, "processor": _processor()}


def _processor() -> str:
    capability = torch.backends.cpu.get_cpu_capability() if not torch.cuda.is_available() else "CUDA"
    return f"{os.uname().machine} {capability}"
