"""CLIP and SigLIP through Hugging Face transformers: the image tower is edited, the text tower only makes frozen
zero-shot heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel

from talos_ray.config import filled
from talos_ray.data.pixels import as_rgb
from talos_ray.errors import SpecError
from talos_ray.models.hf import Model, Tokenizer

AUTO = AutoModel


class Vision:
    """A model with an image and a text tower, its image processor and its tokenizer (see `models.Family`)."""

    edited = ("vision_model.", "visual_projection.")
    words_are_linear = True
    unread = ("logit_bias",)  # weights that a checkpoint may lack
    head_words = (
        "class features [classes, d], scaled: `features / features.norm(dim=-1, keepdim=True) @ head.T` are a task's "
        "logits"
    )

    def __init__(self, module: Model, processor: Any, tokenizer: Tokenizer, length: int) -> None:
        self.module: Model = module.eval()
        self.processor = processor
        self.tokenizer = tokenizer
        self.length = length

    def preprocess(self, examples: list[Any]) -> torch.Tensor:
        images = [as_rgb(image) for image in examples]
        pixels: torch.Tensor = self.processor(images=images, return_tensors="pt").pixel_values  # [n, 3, side, side]
        return pixels

    @torch.no_grad()
    def head(self, phrases: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
        """Mean of the normalised text features over the templates, normalised again (Radford et al., 2021), times the
        logit scale. SigLIP's bias is the same for every class and is left out."""
        rows = []
        for phrase in phrases:
            texts = [filled(prompt, phrase) for prompt in prompts]
            # Padded to the full length: SigLIP was trained so, and CLIP does not look behind a text's end.
            tokens = self.tokenizer(
                texts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
            )
            features = self.module.get_text_features(**tokens).pooler_output
            rows.append(nn.functional.normalize(features.float(), dim=-1).mean(0))
        scale: torch.Tensor = self.module.logit_scale.float().exp()
        return nn.functional.normalize(torch.stack(rows), dim=-1) * scale

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.module.get_image_features(pixel_values=inputs.to(self.module.dtype)).pooler_output
        # In float32, also of a model in bfloat16: the scale multiplies whatever rounding does to a cosine.
        return nn.functional.normalize(features.float(), dim=-1)

    def logits(self, inputs: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return self.features(inputs) @ head.T

    def save(self, folder: Path) -> None:
        """For `AutoModel.from_pretrained(FOLDER)`."""
        for part in (self.module, self.processor, self.tokenizer):
            part.save_pretrained(folder)


def make(module: Model, tokenizer: Tokenizer, where: str, length: int) -> Vision:
    longest = module.config.text_config.max_position_embeddings
    try:
        processor = AutoImageProcessor.from_pretrained(where)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SpecError(
            f"model {where!r}: how it wants its images cannot be read: {reason}; wanted the "
            "preprocessor_config.json that it was saved with; download or copy it"
        ) from None
    return Vision(module, processor, tokenizer, longest)
