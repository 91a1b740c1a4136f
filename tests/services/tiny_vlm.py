"""A tiny random checkpoint of Qwen3-VL-Embedding's architecture: its path can be tested, nothing of its quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CORPUS = (
    "Represent the user's input. Retrieve images or text relevant to the user's query. A photo of a cat on a sofa.",
    "system user assistant NULL seconds 0.5 1.5 2.0 the quick brown fox jumps over the lazy dog; numbers 0123456789.",
    "Keeps the rows of a table and the vectors made from them in step, whatever changes. 把文字和图片变成向量。",
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or 'video' in part -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def build(folder: Path) -> Path:
    """Writes the checkpoint, always the same, with what sentence-transformers wants to find beside it."""
    from transformers import Qwen3VLConfig, Qwen3VLModel

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    ids: dict[str, Any] = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "max_position_embeddings": 32768, "pad_token_id": ids["<|endoftext|>"],
            "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    torch.manual_seed(7)
    model: Any = Qwen3VLModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in _files().items():
        place = folder / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def _tokenizer() -> Tokenizer:
    """Byte pairs, and `<|endoftext|>` after each text, as the real one has it."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    end = SPECIAL[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    return tokenizer


def _files() -> dict[str, object]:
    sizes = {"shortest_edge": 4096, "longest_edge": 1_843_200}
    pixels = {
        "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "size": sizes,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    return {
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2TokenizerFast", "pad_token": SPECIAL[0], "eos_token": "<|im_end|>",
            "model_max_length": 8192, "additional_special_tokens": list(SPECIAL[1:]), "padding_side": "right",
        },
        "preprocessor_config.json": {
            **pixels, "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen3VLProcessor",
        },
        "video_preprocessor_config.json": {
            **pixels, "video_processor_type": "Qwen3VLVideoProcessor", "processor_class": "Qwen3VLProcessor",
        },
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": 64, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False,
            "include_prompt": True,
        },
        "2_Normalize/config.json": {},
        "sentence_bert_config.json": {
            "max_seq_length": 8192,
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"},
                "image": {"method": "forward", "method_output_name": "last_hidden_state"},
                "message": {
                    "method": "forward", "method_output_name": "last_hidden_state", "format": "structured",
                },
            },
            "module_output_name": "token_embeddings",
            "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
        },
    }  # fmt: skip
