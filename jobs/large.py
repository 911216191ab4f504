"""A causal LM of billions of weights in bfloat16, with random weights: calibrated, trained, composed and rolled back by one process.

    python jobs/large.py                                 # the shape of Llama 3 8B, on a GPU
    python jobs/large.py --layers 2 --hidden 256         # the same path, anywhere

Prints seconds and the peak of the device's and of this process's memory, stage by stage. Needs torch and transformers; Ray is not used.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from talos_ray.core.blocks import gather
from talos_ray.core.compose import Composer
from talos_ray.core.delta import make_delta
from talos_ray.core.finetune import Plan, finetune
from talos_ray.core.fisher import SquaredGradients
from talos_ray.core.layout import Layout, eligible_layout
from talos_ray.core.mask import Mask, mask_from_flags, select
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.core.recompute import blocks_of, recomputing, wrapped
from talos_ray.models.causal import Causal

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ANSWERS = 4


def stage(name: str, work: Callable[[], object]) -> object:
    """Do a stage and print what it took."""
    on_gpu = DEVICE.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    found = work()
    if on_gpu:
        torch.cuda.synchronize()
    seconds, host = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    device = f"{torch.cuda.max_memory_allocated() / 1e9:6.1f} GB on the device, " if on_gpu else ""
    print(f"{name:44} {seconds:7.2f} s, {device}{host:6.1f} GB in the process at most so far", flush=True)
    return found


def model(args: argparse.Namespace) -> torch.nn.Module:
    heads = args.hidden // 128
    shape = {
        "hidden_size": args.hidden, "intermediate_size": args.hidden * 7 // 2, "num_hidden_layers": args.layers, "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 4), "head_dim": 128, "vocab_size": args.vocabulary, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    with DEVICE:
        return AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=torch.bfloat16)


def chosen(
    args: argparse.Namespace, module: torch.nn.Module, layout: Layout, logits: Callable, ids: torch.Tensor
) -> Mask:
    """The mask of the rows to which the model is least sensitive, after one round over one batch."""
    sums = SquaredGradients(module, layout)
    checked = sums.checked = stage("which weights no hook fits", lambda: sums.check(logits, ids[:2]))
    print(f"  looped: {len(checked.looped)}; a text keeps {checked.sample_bytes / 1e9:.2f} GB", flush=True)
    draw = torch.Generator().manual_seed(0)
    stage(f"sensitivity, {args.batch} texts", lambda: sums.add(logits, ids[: args.batch], draw))
    scores = stage("scores to the host", lambda: sums.sums.cpu())
    how = {"strategy": "least_sensitive", "keep": args.keep, "granularity": "row"}
    return stage("selection", lambda: mask_from_flags(layout, select(layout, **how, scores=scores)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096, help="a multiple of 128")
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--tokens", type=int, default=256, help="of a text")
    parser.add_argument("--batch", type=int, default=8, help="texts; each is read with four answers")
    parser.add_argument("--keep", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    module = stage("weights, drawn", lambda: model(args))
    family = Causal(module, None, args.tokens)
    layout = eligible_layout(module, family.edited)
    weights = sum(p.nbytes for p in module.parameters())
    print(
        f"{torch.cuda.get_device_name() if DEVICE.type == 'cuda' else 'CPU'}; {sum(p.numel() for p in module.parameters()):,} weights, "
        f"{weights / 1e9:.1f} GB; {layout.total:,} eligible, their scores {4 * layout.total / 1e9:.1f} GB",
        flush=True,
    )
    params = dict(module.named_parameters())
    base = stage("a copy for the comparison at the end", lambda: {n: params[n].detach().cpu() for n in layout.names})
    head = torch.arange(ANSWERS, device=DEVICE)[:, None]
    ids = torch.randint(ANSWERS, args.vocabulary, (args.batch * args.steps, args.tokens), device=DEVICE)
    labels = torch.arange(len(ids), device=DEVICE) % ANSWERS

    def logits(inputs: torch.Tensor) -> torch.Tensor:
        return family.logits(inputs, head)

    mask = chosen(args, module, layout, logits, ids)
    before, deltas = gather(module, mask), []
    for again in (False, True):
        optimizer = stage("optimizer", lambda: SparseAdamW(module, mask, 1e-4))
        plan = Plan("drawn", len(ids), args.steps, args.batch, 1e-4, 1, 0)

        def train(optimizer: SparseAdamW = optimizer, plan: Plan = plan, again: bool = again) -> list[float]:
            with wrapped(blocks_of(module, family.edited) if again else (), recomputing):
                return finetune(optimizer, plan, logits, lambda i: (ids[i], labels[i]))

        losses = stage(f"{args.steps} steps of {args.batch}{', gradient checkpointing' if again else ''}", train)
        print(f"  loss {losses[0]:.4f} to {losses[-1]:.4f}", flush=True)
        values = optimizer.values.detach()
        deltas.append(make_delta(f"drawn {again}", values, before, "base", mask.fingerprint, torch.bfloat16, {}))
        optimizer.values.data.copy_(before)
        optimizer.push()
        optimizer.close()
    print(
        f"  deltas alike: {torch.equal(deltas[0].values, deltas[1].values)}; {deltas[0].values.nbytes / 1e6:.0f} MB each"
    )
    composer = stage("composer", lambda: Composer(module, mask, deltas, "base"))
    stage("compose two tasks", lambda: composer.compose({d.task: 0.5 for d in deltas}))
    stage("compose them again, otherwise", lambda: composer.compose({d.task: 0.25 for d in deltas}))
    stage("roll back", composer.rollback)
    print(f"bitwise the base again: {all(torch.equal(params[n].detach().cpu(), b) for n, b in base.items())}")


if __name__ == "__main__":
    main()
