"""`local:` models: golden vectors and meaning, limits, number formats, folders of every convention."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from seedbed.content import Content
from seedbed.embedders import fingerprint
from seedbed.embedders.folder import find
from seedbed.embedders.local import LocalEmbedder
from seedbed.embedders.runner import Runner
from seedbed.embedders.tokens import batches
from seedbed.errors import ConfigError, ContentsRefused
from seedbed.protocols import Vectors

MINILM = "local:minilm?dtype=float32"
SENTENCES = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The company's revenue rose by a tenth."]
GOLDEN = [
    [0.1645, -0.0697, -0.0501, 0.0512, 0.0023, 0.0426, -0.0358, -0.0277],
    [0.0513, -0.0236, -0.0409, 0.0732, 0.0220, 0.0310, -0.0281, -0.0364],
    [-0.0533, -0.0292, -0.0064, -0.1030, -0.0057, 0.0281, 0.0322, 0.0708],
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(scope="module")
def minilm() -> LocalEmbedder:
    return LocalEmbedder(MINILM, {})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "seedbed" / "fingerprints.json"


def contents(*texts: str) -> list[Content]:
    return [Content.of(text) for text in texts]


def write_json(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": 64},
    )


def bert(folder: Path, seed: int = 0) -> Path:
    """A tiny random encoder, as `save_pretrained` writes it."""
    torch.manual_seed(seed)
    settings = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    BertModel(settings).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def with_modules(folder: Path, pooling: dict[str, Any], *, dense: bool = False, limit: int = 16) -> Path:
    """The same as sentence-transformers lays it out."""
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), "Normalize"]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], 1))]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_json(folder / "modules.json", listed)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False})
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **pooling})
    if dense:
        activation = "torch.nn.modules.activation.Tanh"
        write_json(
            folder / "2_Dense" / "config.json",
            {"in_features": 32, "out_features": 12, "bias": True, "activation_function": activation},
        )
        torch.manual_seed(3)
        weights = {"linear.weight": torch.randn(12, 32), "linear.bias": torch.randn(12)}
        save_file(weights, folder / "2_Dense" / "model.safetensors")
    return folder


def embed(folder: Path, *texts: str, options: str = "") -> Vectors:
    return LocalEmbedder(f"local:{folder}?dtype=float32{options}", {}).embed(contents(*texts))


# --- MiniLM -----------------------------------------------------------------------------------------


def test_golden_vectors(minilm: LocalEmbedder) -> None:
    np.testing.assert_allclose(minilm.embed(contents(*SENTENCES))[:, :8], np.array(GOLDEN, np.float32), atol=1e-3)


def test_meaning(minilm: LocalEmbedder) -> None:
    cat, kitten, revenue = minilm.embed(contents(*SENTENCES))
    assert cat @ kitten > 0.4
    assert cat @ revenue < 0.2


def test_space_names_the_packaged_model(minilm: LocalEmbedder) -> None:
    assert minilm.space.model == "all-MiniLM-L6-v2"
    assert minilm.space.revision == "ae443f268c065cf86923ff026b1a139956c9214d8e5d81515c08cfbb9ab279c6"
    assert minilm.space.profile == 1


def test_the_chosen_format_keeps_the_vectors(minilm: LocalEmbedder) -> None:
    auto = LocalEmbedder("local:minilm", {})
    texts = contents(*SENTENCES, "word " * 200)
    assert (auto.embed(texts) * minilm.embed(texts)).sum(axis=1).min() >= 0.999
    assert auto.provenance()["dtype"] in ("float32", "bfloat16")
    assert auto.space == minilm.space


def test_a_text_over_the_limit_is_refused_unless_it_may_be_cut(minilm: LocalEmbedder) -> None:
    long = "word " * 300
    with pytest.raises(ContentsRefused) as raised:
        minilm.embed(contents("short", long))
    assert raised.value.refused[1].startswith("302 tokens, but the model takes 256")
    assert "[chunk]" in raised.value.refused[1]
    np.testing.assert_allclose(raised.value.vectors[0], minilm.embed(contents("short"))[0], atol=1e-5)
    cutting = LocalEmbedder(f"{MINILM}&truncate=true", {})
    np.testing.assert_allclose(cutting.embed(contents(long))[0], minilm.embed(contents("word " * 254))[0], atol=1e-5)
    assert cutting.usage.tokens == 256
    assert cutting.count_tokens(contents(long)).tolist() == [302]


def test_many_texts_over_several_slices_equal_each_alone(minilm: LocalEmbedder) -> None:
    texts = contents(*(" ".join(SENTENCES[: 1 + number % 3]) + f" {number}" for number in range(300)))
    together = minilm.embed(texts)
    for number in (0, 1, 2, 150, 255, 256, 299):
        np.testing.assert_allclose(together[number], minilm.embed([texts[number]])[0], atol=1e-5)


def test_weights_are_loaded_again_after_close() -> None:
    made = LocalEmbedder(MINILM, {})
    before = made.embed(contents("a"))
    made.close()
    np.testing.assert_allclose(made.embed(contents("a")), before, atol=1e-6)


# --- folders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooling", "dense"),
    [
        ({"pooling_mode_mean_tokens": True}, False),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, False),
        ({"pooling_mode_max_tokens": True}, False),
        ({"pooling_mode": "lasttoken"}, True),
        ({"pooling_mode": "mean"}, True),
    ],
)
def test_a_sentence_transformers_folder_gives_its_vectors(tmp_path: Path, pooling: dict[str, Any], dense: bool) -> None:
    folder = with_modules(bert(tmp_path / "model"), pooling, dense=dense)
    texts = ["a b c d", "x", "q w e r t y u i o p"]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, show_progress_bar=False)
    found = embed(folder, *texts)
    assert found.shape == (3, 12 if dense else 32)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_without_modules_an_encoder_pools_the_mean(tmp_path: Path) -> None:
    folder = bert(tmp_path / "plain")
    ids = torch.tensor([[2, 4, 5, 3]])
    with torch.inference_mode():
        mean = BertModel.from_pretrained(folder)(input_ids=ids).last_hidden_state.mean(1)[0].numpy()
    np.testing.assert_allclose(embed(folder, "a b", "c d e f g")[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_without_modules_a_decoder_pools_the_last_token(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = Qwen3Config(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=48,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    folder = tmp_path / "decoder"
    Qwen3ForCausalLM(settings).save_pretrained(folder)
    write_tokenizer(folder)
    with torch.inference_mode():
        states = Qwen3Model.from_pretrained(folder)(input_ids=torch.tensor([[2, 4, 5, 3]])).last_hidden_state
    last = states[0, -1].numpy()
    np.testing.assert_allclose(embed(folder, "a b", "c d e f g")[0], last / np.linalg.norm(last), atol=1e-5)


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = bert(tmp_path / "spoilt")
    model = BertModel.from_pretrained(folder)
    model.embeddings.word_embeddings.weight.data[4] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(ContentsRefused) as raised:
        embed(folder, "b c", "a b")
    assert set(raised.value.refused) == {1}
    assert "NaN" in raised.value.refused[1]


def test_revision_follows_the_files_that_decide(tmp_path: Path, cache: Path) -> None:
    folder = bert(tmp_path / "model")
    revision = LocalEmbedder(f"local:{folder}", {}).space.revision
    (folder / "README.md").write_text("notes", encoding="utf-8")
    assert LocalEmbedder(f"local:{folder}", {}).space.revision == revision
    moved = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert LocalEmbedder(f"local:{moved}", {}).space.revision == revision
    assert str(folder / "model.safetensors") in cache.read_text(encoding="utf-8")
    bert(folder, seed=1)
    changed = LocalEmbedder(f"local:{folder}", {}).space.revision
    assert changed != revision
    cache.write_text("torn", encoding="utf-8")
    assert fingerprint.fingerprint(folder) == changed


def test_a_cache_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bert(tmp_path / "model")
    expected = fingerprint.fingerprint(folder)
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fingerprint.fingerprint(folder) == expected


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("./no/such/folder", "there is no model folder"),
        ("nothing", "there is no model folder"),
        ("minilm?dtyp=float32", "no option 'dtyp'"),
        ("minilm?dtype=int3", "is not one of"),
        ("minilm?batch_tokens=0", "at least 1"),
    ],
)
def test_urls_that_name_nothing_usable(target: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        LocalEmbedder(f"local:{target}", {})
    assert raised.value.setting == "embedder.url"
    assert raised.value.hint


def test_an_unreachable_hub_is_said(tmp_path: Path) -> None:
    code = (
        "from seedbed import registry\n"
        "from seedbed.errors import ConfigError\n"
        "try: registry.embedder('local:nobody/no-such-model').space\n"
        "except ConfigError as error: print(error)"
    )
    done = _python(code, HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9")
    assert "the hub is unreachable" in done


def test_a_hub_id_in_the_cache_needs_no_network(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "hub" / "models--some--model"
    bert(home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit, encoding="utf-8")
    code = (
        "from seedbed import registry\n"
        "from seedbed.content import Content\n"
        "made = registry.embedder('local:some/model?dtype=float32')\n"
        "print(made.space.model, made.space.revision, made.embed([Content.of('a b')]).shape)"
    )
    done = _python(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.split(maxsplit=2) == ["some/model", commit, "(1, 32)\n"]


def test_modules_that_are_not_known_are_named(tmp_path: Path) -> None:
    folder = with_modules(bert(tmp_path / "model"), {"pooling_mode": "weightedmean"})
    with pytest.raises(ConfigError, match="weightedmean"):
        embed(folder, "a")
    write_json(folder / "modules.json", [{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}])
    with pytest.raises(ConfigError, match="StaticEmbedding"):
        embed(folder, "a")


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    folder = bert(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"cannot load .*model") as raised:
        embed(folder, "a")
    assert raised.value.setting == "embedder.url"


# --- batches ----------------------------------------------------------------------------------------


def test_batches_keep_the_budget_and_lose_nothing() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 500).tolist()
    found = batches(lengths, 1024)
    assert sorted(position for batch in found for position in batch) == list(range(500))
    assert all(len(batch) * max(lengths[n] for n in batch) <= 1024 for batch in found)
    assert batches([5000, 10], 1024) == [[0], [1]]


def test_out_of_memory_halves_the_budget_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made = LocalEmbedder(MINILM, {})
    texts = contents(*SENTENCES, "one", "two", "three")
    expected = made.embed(texts)
    runner: Runner = made._runner
    honest = runner._models[0].vectors

    def small(ids: list[list[int]], dimensions: int) -> Vectors:
        if len(ids) > 2:
            raise torch.OutOfMemoryError("no room")
        return honest(ids, dimensions)

    monkeypatch.setattr(runner._models[0], "vectors", small)
    budget = runner.budget
    np.testing.assert_allclose(made.embed(texts), expected, atol=1e-5)
    assert runner.budget < budget


def _python(code: str, **environment: str) -> str:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return done.stdout


def test_find_names_the_hub_id_and_its_revision() -> None:
    assert find("some/model@abc").name == "some/model"
