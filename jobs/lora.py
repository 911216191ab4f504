"""LoRA beside the edits of a finished run: the same base, data, steps and batches, trained and merged by PEFT's own layers.

    python jobs/lora.py runs/demo               # pip install 'talos_ray[peft]'
    python jobs/lora.py runs/demo --rank 16

Every task gets an adapter on all linear and attention layers of what is edited. Of three learning rates the one with the best mean
validation accuracy is taken. Alone each is scored by the words' heads and by heads of the tasks' own, fitted as ours are; together
their sum is scaled as other packages' merges are (jobs/other_merges.py): of 21 scales the best on validation data at which the
control holds. Tables show test data.
"""

import argparse
import sys
import time
from pathlib import Path

import peft
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.other_merges import scored
from talos_ray.config import Spec
from talos_ray.core.delta import Delta
from talos_ray.core.finetune import Plan
from talos_ray.core.mask import mask_from_flags
from talos_ray.models import build_model
from talos_ray.orchestrate.joint import by_own_head
from talos_ray.orchestrate.learning import pool_of
from talos_ray.orchestrate.plan import prepare
from talos_ray.orchestrate.worker import Arm, Shared, Workbench, freeze
from talos_ray.progress import Progress
from talos_ray.storage.run_folder import RunFolder

RATES = (1e-3, 3e-3, 1e-2)
STORED = 2  # bytes of a value, as our deltas are stored in bfloat16, too


class Trainer:
    """Adapters for the tasks of a run, each trained from the base."""

    def __init__(self, uri: str, rank: int) -> None:
        info = RunFolder(uri).info()
        spec = Spec.model_validate({**info["spec"], "output": uri})
        self.spec = spec
        self.prepared = prepare(spec, Progress())
        p = self.prepared
        self.bench = Workbench(Shared(spec, p.base, freeze(p.tensors), p.layout, p.heads))
        self.rank = rank
        self.weights = 0  # of one adapter

    def layers(self, module: nn.Module) -> list[str]:
        """Linear and attention layers with weights that an edit may change."""
        named = {name.rpartition(".")[0] for name in self.prepared.layout.names}
        kinds = (nn.Linear, nn.MultiheadAttention)
        return [name for name, layer in module.named_modules() if name in named and isinstance(layer, kinds)]

    def train(self, task: str, lr: float) -> torch.Tensor:
        """What an adapter changes, float32 [weights of the layout]; the model is left with it merged in."""
        self.bench.family = build_model(self.spec.model, {n: t.clone() for n, t in self.prepared.tensors.items()}, ())
        module = self.bench.family.module
        torch.manual_seed(self.spec.seed)
        config = peft.LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules=self.layers(module))
        adapted = peft.LoraModel(module, config, "default")
        values = [value for value in module.parameters() if value.requires_grad]
        self.weights = sum(value.numel() for value in values)
        optimizer = torch.optim.AdamW(values, lr=lr, weight_decay=0.0)
        settings = self.spec.train_for(self.bench.shared.task(task), len(self.prepared.data[task].train))
        examples = self.bench.examples(task, "train")
        plan = Plan(
            task=task,
            samples=len(examples),
            steps=settings.steps,
            batch_size=settings.batch_size,
            lr=lr,
            warmup_steps=settings.warmup_steps,
            seed=self.spec.seed,
        )
        logits = self.bench.logits(task)
        for step in range(plan.steps):
            inputs, labels = examples.batch(plan.batch_at(step))
            loss = plan.loss(labels, logits(inputs).float()) / len(labels)
            optimizer.param_groups[0]["lr"] = plan.lr_at(step)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(values, 1.0)
            optimizer.step()
        adapted.merge_and_unload()
        after = dict(module.named_parameters())
        parts = [after[name].detach() - self.prepared.tensors[name] for name in self.prepared.layout.names]
        return torch.cat([part.reshape(-1) for part in parts])

    def right(self, task: str, split: str) -> float:
        return float(self.bench.answered(self.bench.examples(task, split), task).right().float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a finished run, in a local folder")
    parser.add_argument("--rank", type=int, default=8)
    args = parser.parse_args()
    trainer = Trainer(str(Path(args.run).resolve()), args.rank)
    targets = trainer.prepared.targets
    tried = {}
    for lr in RATES:
        started = time.perf_counter()
        rows = {}
        for task in targets:
            vector = trainer.train(task, lr)
            data = trainer.prepared.data[task]
            pool = pool_of(trainer.spec, task, len(data.train), len(data.validation))
            rows[task] = {
                "vector": vector,
                "validation": trainer.right(task, "validation"),
                "words": trainer.right(task, "test"),
                "own": by_own_head(trainer.bench, task, pool),
            }
        seconds = time.perf_counter() - started
        mean = sum(row["validation"] for row in rows.values()) / len(rows)
        print(f"learning rate {lr:g}: mean validation accuracy {mean:.3f}, {seconds:.0f} s", flush=True)
        tried[mean] = rows
    rows = tried[max(tried)]
    layout = trainer.prepared.layout
    together = sum(row["vector"] for row in rows.values())
    everything = mask_from_flags(layout, torch.ones(layout.total, dtype=torch.bool))
    base = trainer.prepared.base
    trainer.bench.family = build_model(trainer.spec.model, trainer.bench.tensors, layout.names)
    arm = Arm.of("peer", everything.bits, {"peer": Delta("peer", together, base, everything.fingerprint)})
    merged = scored(trainer.bench, trainer.prepared, arm)
    table = Table("LoRA, mean over targets, test data", "own heads", "words' heads", "control kept", "MB, all tasks")
    singles = {kind: sum(row[kind] for row in rows.values()) / len(rows) for kind in ("own", "words")}
    size = f"{len(targets) * trainer.weights * STORED / 1e6:.1f}"
    table.add_row(f"single, rank {args.rank}", f"{singles['own']:.3f}", f"{singles['words']:.3f}", "", size)
    name = f"summed, scale {merged['scale']:.2f}"
    table.add_row(name, f"{merged['own']:.3f}", f"{merged['words']:.3f}", f"{merged['kept']:.1%}", size)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


if __name__ == "__main__":
    main()
