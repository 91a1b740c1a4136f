"""Changes of number format lose nothing but the stored weights' digits, and nothing is made up for missing weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seedbed.content import Content
from seedbed.embedders.card import read_card
from seedbed.embedders.local import local
from seedbed.embedders.model import Model
from seedbed.errors import ConfigError
from services import tiny_vlm


def test_frequencies_of_positions_stay_exact(tmp_path: Path) -> None:
    """They are kept beside the weights: rounded once, no change back would mend them."""
    folder = tiny_vlm.build(tmp_path / "tiny")
    model = Model(folder, read_card(folder), torch.device("cpu"), torch.float32)
    exact = {name: buffer.clone() for name, buffer in model._transformer.named_buffers() if "freq" in name}
    kept = model.weights()
    model.to(torch.bfloat16)
    assert model.dtype is torch.bfloat16
    model.restore(kept)
    assert model.dtype is torch.float32
    assert exact
    for name, buffer in model._transformer.named_buffers():
        if name in exact:
            torch.testing.assert_close(buffer, exact[name], rtol=0, atol=0)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.weights().items())


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = tiny_vlm.build(tmp_path / "tiny")
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    lost = next(name for name in weights if "mlp" in name)
    del weights[lost]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 1 of the model's weights"):
        local(f"local:{folder}", {}).embed([Content.of("a")])
