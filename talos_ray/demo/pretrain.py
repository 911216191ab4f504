"""Pretrain the demo's tiny CLIP on captioned pictures: `python -m talos_ray.demo.pretrain`.

open_clip's own `CLIP` class, trained from scratch with the contrastive loss of CLIP (Radford et al.,
2021) on pictures that `render.caption_pair` draws. Writes, beside this file: `clip.safetensors`,
`clip.json` (open_clip's config), `merges.txt.gz` (byte pairs for open_clip's `SimpleTokenizer`) and
`README.md` (recipe, wall time and scores). Everything follows from SEED.
"""

from __future__ import annotations

import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save_file

from talos_ray.demo import render

HERE = Path(__file__).parent
SEED = 20260101
PICTURES, PASSES, BATCH, PEAK_LR, WARMUP = 180_000, 5, 256, 1e-3, 200
NOISE, SHADE = 14.0, 0.3  # camera effects while pretraining: grey levels, share of light (half of the pictures)
CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": render.SIZE, "patch_size": 8, "width": 192, "layers": 4, "head_width": 48},
    "text_cfg": {"context_length": 20, "vocab_size": 0, "width": 128, "heads": 4, "layers": 2},
}


def draw_corpus(n: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """n pictures [n, SIZE, SIZE, 3] uint8 and their captions."""
    pictures, captions = np.empty((n, render.SIZE, render.SIZE, 3), np.uint8), []
    for i in range(n):
        image, text = render.caption_pair(np.random.default_rng((seed, i)))
        pictures[i] = np.asarray(image)
        captions.append(text)
    return pictures, captions


def write_merges(captions: list[str], path: Path, size: int = 400) -> None:
    """Learn byte pairs from the captions and store them in the format that open_clip's tokenizer reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator(captions, trainers.BpeTrainer(vocab_size=size + 60, end_of_word_suffix="</w>", show_progress=False))
    merges = [m if isinstance(m, str) else " ".join(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    with open(path, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as out:
        out.write(("#version: 0.2\n" + "\n".join(merges)).encode())


def camera(images: torch.Tensor) -> torch.Tensor:
    """Mild sensor noise and slanting light on half of a batch [n, 3, SIZE, SIZE] of grey levels, fresh in every pass."""
    n = len(images)
    on = (torch.rand(n, 1, 1, 1) < 0.5).float()
    angle = torch.rand(n, 1, 1, 1) * 2 * math.pi
    y, x = torch.meshgrid(torch.linspace(-1, 1, render.SIZE), torch.linspace(-1, 1, render.SIZE), indexing="ij")
    slope = 0.5 + 0.5 * (x * angle.cos() + y * angle.sin())
    lit = images * (1 - SHADE * on * torch.rand(n, 1, 1, 1) * slope)
    return (lit + on * NOISE * torch.rand(n, 1, 1, 1) * torch.randn_like(lit)).clamp(0, 255)


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric loss; captions that occur twice in a batch share the target (`same`, bool [n, n])."""
    logits = scale * image @ text.T
    target = same.float() / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train() -> float:
    """Train and write weights, config and merges. Returns the wall time in seconds."""
    started = time.perf_counter()
    torch.manual_seed(SEED)
    pictures, captions = draw_corpus(PICTURES, SEED)
    print(f"drew {PICTURES} pictures, {len(set(captions))} different captions, {time.perf_counter() - started:.0f} s", flush=True)
    write_merges(captions, HERE / "merges.txt.gz")
    tokenizer = open_clip.SimpleTokenizer(str(HERE / "merges.txt.gz"), context_length=CONFIG["text_cfg"]["context_length"])
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": tokenizer.vocab_size}}
    (HERE / "clip.json").write_text(json.dumps(config, indent=1) + "\n")
    model = open_clip.model.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    weights = sum(p.numel() for p in model.parameters())
    tokens = tokenizer(captions)
    caption_id = torch.from_numpy(np.unique(captions, return_inverse=True)[1])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    data = torch.from_numpy(pictures).permute(0, 3, 1, 2)  # [n, 3, SIZE, SIZE] uint8
    steps = PICTURES * PASSES // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    print(f"{weights / 1e6:.2f} M weights, {steps} steps", flush=True)
    step = 0
    for _ in range(PASSES):
        for batch in torch.randperm(PICTURES)[: PICTURES // BATCH * BATCH].view(-1, BATCH):
            images = (camera(data[batch].float()) / 255 - mean) / std
            image, text, scale = model(images, tokens[batch])
            same = caption_id[batch][:, None] == caption_id[batch][None, :]
            loss = contrastive_loss(image, text, scale, same)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            step += 1
            if step % 100 == 0:
                print(f"step {step}/{steps} loss {loss.item():.3f} {time.perf_counter() - started:.0f} s", flush=True)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, HERE / "clip.safetensors")
    seconds = time.perf_counter() - started
    facts = {"seconds": round(seconds), "loss": round(loss.item(), 3), "weights": weights, "captions": len(set(captions)), "steps": steps, "threads": torch.get_num_threads()}
    (HERE / "pretrain.json").write_text(json.dumps(facts, indent=1) + "\n")
    return seconds
