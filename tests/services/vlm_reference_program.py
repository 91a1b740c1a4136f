"""Run in a process of its own: the vectors of sentence-transformers, and what transformers' own processor makes of
pictures and prompts. PyPI's torchvision does not find its operators beside a CPU torch, so two are declared first."""

from __future__ import annotations

import json
import pickle
import sys
from typing import Any

sys.path.append(sys.argv[1])
import torch

made: Any = torch.library.Library
library = made("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from transformers import AutoProcessor  # noqa: E402

folder = sys.argv[2]
asked = pickle.loads(sys.stdin.buffer.read())
images = [Image.fromarray(pixels) for pixels in asked["images"]]
model = SentenceTransformer(folder, device="cpu")
processors: Any = AutoProcessor
processor = processors.from_pretrained(folder)
system: dict[str, Any] = {"role": "system", "content": [{"type": "text", "text": asked["instruction"]}]}


def turns(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [system, {"role": "user", "content": list(parts)}]


def rendered(conversation: list[dict[str, Any]]) -> Any:
    return processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)


found = {
    "texts": model.encode([turns({"type": "text", "text": text}) for text in asked["texts"]], show_progress_bar=False),
    "images": model.encode([turns({"type": "image", "image": image}) for image in images], show_progress_bar=False),
    "mixed": model.encode(
        [
            turns({"type": "image", "image": image}, {"type": "text", "text": text})
            for image, text in zip(images, asked["texts"], strict=False)
        ],
        show_progress_bar=False,
    ),
    "prompts": [
        processor(text=[rendered(turns({"type": "text", "text": text}))])["input_ids"][0] for text in asked["texts"]
    ],
    "patches": [
        np.asarray(processor.image_processor(images=[image], do_resize=False, return_tensors="np")["pixel_values"])
        for image in images
    ],
}
sys.stdout.buffer.write(pickle.dumps(json.loads(json.dumps(found, default=lambda array: array.tolist()))))
