"""What mergekit's command does, with our core: files in, file out. `ours.py FOLDER OUT [--dense]`, prints its times as JSON.

FOLDER holds `base.safetensors`, `task0.safetensors` ... (dense, fine-tuned) and the same edits as `mask.safetensors`
and `deltas.safetensors`. With `--dense` the dense files are read and reduced to the mask, as mergekit has to.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from talos_ray.core.blocks import gather
from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta, make_delta
from talos_ray.core.layout import Layout
from talos_ray.core.mask import mask_from_packed


class Tensors(nn.Module):
    """A checkpoint as a module, without the model's own code."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.tensors = {n: nn.Parameter(t, requires_grad=False) for n, t in tensors.items()}

    def named_parameters(self, *_, **__):
        yield from self.tensors.items()


def main(folder: Path, out: Path, dense: bool) -> None:
    times, at = {}, time.perf_counter()
    coefficients = json.loads((folder / "coefficients.json").read_text())
    module = Tensors(load_file(folder / "base.safetensors"))
    packed = load_file(folder / "mask.safetensors")
    names = tuple(sorted(packed))
    mask = mask_from_packed(Layout(names, tuple(tuple(module.tensors[n].shape) for n in names)), packed)
    if dense:
        base, deltas = gather(module, mask), []
        for task in coefficients:
            tuned = gather(Tensors(load_file(folder / f"{task}.safetensors")), mask)
            deltas.append(make_delta(task, tuned, base, "base", mask.fingerprint, torch.bfloat16, {}))
    else:
        deltas = [Delta(t, v, "base", mask.fingerprint) for t, v in load_file(folder / "deltas.safetensors").items()]
    times["read"], at = time.perf_counter() - at, time.perf_counter()
    Composer(module, mask, deltas, "base").compose(coefficients)
    times["compose"], at = time.perf_counter() - at, time.perf_counter()
    save_file({n: p.detach() for n, p in module.named_parameters()}, out)
    times["write"] = time.perf_counter() - at
    print(json.dumps(times))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "--dense" in sys.argv)
