"""Pretrain the demo's tiny CLIP on captioned pictures: `python jobs/pretrain_demo.py`.

open_clip's own `CLIP` class, trained from scratch with the contrastive loss of CLIP (Radford et al.,
2021) on pictures that `render.caption_pair` draws. Writes, in `talos_ray/demo`: `clip.safetensors`,
`clip.json` (open_clip's config), `merges.txt.gz` (byte pairs for open_clip's `SimpleTokenizer`),
`pretrain.json` (wall time and scores) and `README.md` (the page made of them). Everything follows from
SEED. `python jobs/pretrain_demo.py --score-only` keeps the weights and measures them again.
"""

from __future__ import annotations

import gzip
import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save_file

from talos_ray.demo import render
from talos_ray.demo.tasks import CONTROL, RECIPES, SETS, TARGETS
from talos_ray.inputs import Examples
from talos_ray.models import load_model
from talos_ray.spec import resolve_task
from talos_ray.tasks import load_task

DEMO = Path(render.__file__).parent  # where the package keeps what is written here
SEED = 20260101
PICTURES = 180_000
PASSES = 5
BATCH = 256
PEAK_LR = 1e-3
WARMUP = 200
# camera effects while pretraining: grey levels, share of light (half of the pictures)
NOISE = 14.0
SHADE = 0.3
CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": render.SIZE, "patch_size": 8, "width": 192, "layers": 4, "head_width": 48},
    "text_cfg": {"context_length": 20, "vocab_size": 0, "width": 128, "heads": 4, "layers": 2},
}


def draw_corpus(n: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """n pictures [n, SIZE, SIZE, 3] uint8 and their captions."""
    pictures = np.empty((n, render.SIZE, render.SIZE, 3), np.uint8)
    captions = []
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
    learner.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=size + 60, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [m if isinstance(m, str) else " ".join(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    with open(path, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as out:
        out.write(("#version: 0.2\n" + "\n".join(merges)).encode())


def camera(images: torch.Tensor) -> torch.Tensor:
    """Mild sensor noise and slanting light on half of a batch [n, 3, SIZE, SIZE] of grey levels, fresh in every
    pass."""
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


def train() -> dict[str, Any]:
    """Train and write weights, config and merges. Returns the facts of the training: seconds, loss, sizes."""
    started = time.perf_counter()
    torch.manual_seed(SEED)
    pictures, captions = draw_corpus(PICTURES, SEED)
    print(
        f"drew {PICTURES} pictures, {len(set(captions))} different captions, {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    write_merges(captions, DEMO / "merges.txt.gz")
    tokenizer = open_clip.SimpleTokenizer(
        str(DEMO / "merges.txt.gz"), context_length=CONFIG["text_cfg"]["context_length"]
    )
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": tokenizer.vocab_size}}
    (DEMO / "clip.json").write_text(json.dumps(config, indent=1) + "\n")
    model = open_clip.model.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    weights = sum(p.numel() for p in model.parameters())
    tokens = tokenizer(captions)
    caption_id = torch.from_numpy(np.unique(captions, return_inverse=True)[1])
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
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
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, DEMO / "clip.safetensors")
    return {
        "seconds": round(time.perf_counter() - started), "loss": round(loss.item(), 3), "weights": weights,
        "captions": len(set(captions)), "steps": steps, "threads": torch.get_num_threads(),
    }  # fmt: skip


def score() -> dict[str, float]:
    """Zero-shot test accuracy of the shipped weights on every demo set."""
    family = load_model("demo")
    found = {}
    for recipe in RECIPES:
        data = load_task(resolve_task(recipe), 0)
        inputs, labels = Examples(data.test, family.preprocess).batch(torch.arange(len(data.test)))
        with torch.inference_mode():
            right = family.logits(inputs, family.head(data.phrases, data.task.prompts)).argmax(-1) == labels
        found[data.task.name] = round(float(right.float().mean()), 4)
    return found


def page(facts: dict[str, Any]) -> str:
    """The page beside the weights."""
    scores = facts["zero_shot"]
    rows = [
        f"| {n} | {'target' if n in TARGETS else 'control'} | {len(SETS[n].classes)} | {SETS[n].sizes[2]} | "
        f"{scores[n]:.3f} |"
        for n in SETS
    ]
    return f"""# The embedded default

A tiny CLIP, eight target tasks and one control task: enough to see every part of talos_ray work on two cores,
with nothing to download. `python jobs/pretrain_demo.py` makes everything on this page again.

## The model
open_clip's `CLIP` class from `clip.json`: {facts["weights"]:,} weights, shipped in float16 as `clip.safetensors`.

Pretrained from scratch with CLIP's contrastive loss (captions that occur twice in a batch share the target) on
{PICTURES:,} pictures of {render.SIZE} x {render.SIZE} pixels that `render.caption_pair` draws: flat colours,
clean edges, {facts["captions"]:,} different captions about shapes, digits, counts, patterns, arrows, lit balls, road
signs and landscapes. Half of the pictures get mild noise (up to {NOISE:g} grey levels) and slanting light, fresh in
every pass.

| | |
|---|---|
| seed | {SEED} |
| passes, batch, steps | {PASSES}, {BATCH}, {facts["steps"]} |
| AdamW | peak learning rate {PEAK_LR:g}, {WARMUP} warm-up steps, cosine, weight decay 0.05, clipping at 1 |
| wall time | {facts["seconds"]} s on {facts["threads"]} CPU threads |
| last loss | {facts["loss"]:.3f} |

## The tasks
`render.draw_*` draws them, from seeds of their own; none of their pictures is in the pretraining set. They show what
the model knows in a world that it does not: other typefaces, worn signs, mottled grounds, odd light, everything seen
through one cheap camera with fixed-pattern noise. `scanned_digits` are real scans (scikit-learn's handwritten digits).
The control task is the pretraining world itself, drawn from fresh seeds, with many classes.

Zero-shot accuracy on test pictures (`python jobs/pretrain_demo.py --score-only`); mean of the targets
**{sum(scores[t] for t in TARGETS) / len(TARGETS):.3f}**, control **{scores[CONTROL]:.3f}**:

| set | kind | classes | test pictures | zero-shot |
|---|---|---|---|---|
{chr(10).join(rows)}

What fine-tuning and merging make of it is in the report of `make run`.
"""


def main(
    score_only: Annotated[bool, typer.Option(help="Keep the weights; measure them and write the page.")] = False,
) -> None:
    """Pretrain the demo's CLIP (half an hour on two cores), then write its scores and its page."""
    facts = json.loads((DEMO / "pretrain.json").read_text()) if score_only else train()
    facts["zero_shot"] = score()
    (DEMO / "pretrain.json").write_text(json.dumps(facts, indent=1) + "\n")
    (DEMO / "README.md").write_text(page(facts))
    print(json.dumps(facts["zero_shot"], indent=1))


if __name__ == "__main__":
    typer.run(main)
