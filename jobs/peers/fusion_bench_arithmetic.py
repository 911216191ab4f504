"""fusion-bench's task arithmetic in one process, on models in memory: `... FOLDER OUT REPEATS`, prints times (ms) as JSON."""

import json
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

from fusion_bench.method.task_arithmetic.task_arithmetic import TaskArithmeticAlgorithm
from safetensors.torch import load_file, save_file
from torch import nn

ALPHA = 0.3


def model(path: Path) -> nn.Module:
    module = nn.Module()
    for name, tensor in load_file(path).items():
        module.register_parameter(name.replace(".", "/"), nn.Parameter(tensor))
    return module


def main(folder: Path, out: Path, repeats: int) -> None:
    tuned = {p.stem: model(p) for p in sorted(folder.glob("task*.safetensors"))}
    pool = {"_pretrained_": model(folder / "base.safetensors"), **tuned}
    with redirect_stdout(sys.stderr):  # it prints a profile
        merged = TaskArithmeticAlgorithm(ALPHA, inplace=False).run(pool)
        save_file({n.replace("/", "."): p.detach() for n, p in merged.named_parameters()}, out)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            TaskArithmeticAlgorithm(ALPHA, inplace=True).run(pool)
            times.append((time.perf_counter() - start) * 1e3)
    print(json.dumps(times))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
