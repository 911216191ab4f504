"""The core, the models and the demo must run on a machine without ray; nothing may import upwards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = (
    ("errors", "shown"),
    ("progress", "secrets", "templates", "yaml_file"),
    ("core",),
    ("config",),
    ("demo", "choice"),
    ("data",),
    ("tasks", "corruptions"),
    ("inputs",),
    ("models", "spec", "storage", "smoke"),
    ("gate", "user_files"),
    ("report", "scaffold", "estimate"),
    ("integrations", "notebook"),
    ("trust",),
    ("orchestrate",),
    ("api",),
    ("reproduce",),
    ("serving",),
    ("cli",),
)
OPTIONAL = {"peft", "pytorch_lightning", "lightning", "jsonschema", "tensorboard", "lm_eval", "IPython"}  # transformers loads accelerate, open_clip wandb
ORDER = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", sorted((ROOT / "talos_ray").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_go_one_way(path):
    own = path.relative_to(ROOT / "talos_ray").parts[0].removesuffix(".py")
    floor = ORDER["cli"] if path.name == "pretrain.py" else ORDER.get(own)  # a script that uses what it made
    for name in imports(path):
        if name.split(".")[0] == "ray":
            assert own == "orchestrate" or path.name == "deploy.py", f"{path.name} imports ray"
        if name.startswith("talos_ray.") and floor is not None:
            other = name.split(".")[1]
            assert other == own or ORDER[other] < floor, f"{path.name} imports {name}"


def test_all_but_the_ray_layer_and_what_uses_it_imports_without_ray():
    low = [
        p
        for p in sorted((ROOT / "talos_ray").rglob("*.py"))
        if ORDER.get(p.relative_to(ROOT / "talos_ray").parts[0].removesuffix(".py"), 99) < ORDER["orchestrate"]
        or (p.parent.name == "serving" and p.name != "deploy.py")
    ]
    names = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in low
        if p.name not in ("pretrain.py", "kernels_gpu.py")
    ]
    script = "import sys; sys.modules['ray'] = None; from importlib import import_module; "
    script += f"[import_module(n) for n in {names}]; assert not (loaded := {OPTIONAL} & set(sys.modules)), loaded"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert len(names) > 40 and done.returncode == 0, done.stderr[-3000:]


def test_the_demo_model_runs_without_ray():
    script = """
import sys; sys.modules['ray'] = None
import torch
from talos_ray.models import load_model, layout_of
from talos_ray.spec import resolve_task
from talos_ray.inputs import Examples
from talos_ray.tasks import load_task
from talos_ray.core.fisher import SquaredGradients
task = resolve_task('demo:scanned_digits')
data, family = load_task(task, 0), load_model('demo')
head = family.head(data.phrases, task.prompts)
inputs, labels = Examples(data.train, family.preprocess).batch(torch.arange(8))
gradients = SquaredGradients(family.module, layout_of(family))
gradients.add(lambda x: family.logits(x, head), inputs, torch.Generator())
assert gradients.checked.looped == () and float(gradients.sums.sum()) > 0
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_importing_the_package_imports_neither_ray_nor_torch():
    script = "import sys, talos_ray; assert not {'ray', 'torch'} & set(sys.modules); assert talos_ray.edit and talos_ray.Task"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
