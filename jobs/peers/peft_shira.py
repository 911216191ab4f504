"""peft's SHiRA (sparse adapters with a mask each): bytes of an adapter on disk and the time to swap one for another.

`peft_shira.py SHAPES.json FOLDER REPEATS`; prints {"bytes", "weights", "swap"} (swap in ms) as JSON.
"""

import json
import sys
import time
from pathlib import Path

import torch
from peft import ShiraConfig, get_peft_model
from torch import nn


def main(shapes: list[list[int]], folder: Path, repeats: int) -> None:
    torch.manual_seed(0)
    layers = nn.ModuleDict(
        {f"layer{i}": nn.Linear(inner, outer, bias=False) for i, (outer, inner) in enumerate(shapes)}
    )
    # r (m + n) weights a layer: the rank at which all layers together hold a tenth.
    rank = round(0.1 * sum(m * n for m, n in shapes) / sum(m + n for m, n in shapes))
    config = ShiraConfig(r=rank, target_modules=list(layers), random_seed=0, init_weights=False)
    model = get_peft_model(layers, config, adapter_name="a")
    model.add_adapter("b", config)
    model.save_pretrained(folder, selected_adapters=["a"])
    times = []
    model.base_model.merge_adapter(["a"])
    for i in range(repeats + 1):
        start = time.perf_counter()
        model.base_model.unmerge_adapter()
        model.base_model.merge_adapter(["b" if i % 2 == 0 else "a"])
        if i:
            times.append((time.perf_counter() - start) * 1e3)
    size = sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
    print(json.dumps({"bytes": size, "weights": rank * sum(m + n for m, n in shapes), "swap": times}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), int(sys.argv[3]))
