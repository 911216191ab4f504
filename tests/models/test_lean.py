"""Processes of our own load open_clip without what the model at hand does not need."""

import subprocess
import sys

SCRIPT = """
import sys
from talos_ray.models import build_model, base_tensors, load_model
from talos_ray.models.lean import import_lean

def loaded():
    return [bool(getattr(sys.modules[f"open_clip.{at}"], lib)) for at, lib in (("hf_model", "transformers"), ("timm_model", "timm"))]

for name in ("hf:some/model", "python:module:function", "open_clip:hf-hub:some/model", "open_clip:no-such/tag"):
    import_lean(name)
assert "open_clip" not in sys.modules, "only open_clip itself can tell what these need"
import_lean("demo")
assert loaded() == [False, False]
import_lean("open_clip:hf-hub:some/model")
assert "open_clip" not in sys.modules, "it may need what was left out"
import_lean("demo")
assert loaded() == [False, False]
import open_clip
lean = open_clip
import timm, transformers  # they are hidden no longer
demo = base_tensors(load_model("demo"))
import_lean("open_clip:ViT-B-32/openai")
assert sys.modules["open_clip"] is lean, "it needs no more"
import_lean("open_clip:roberta-ViT-B-32/laion2b_s12b_b32k")
assert sys.modules["open_clip"] is not lean and loaded() == [True, True]
whole = sys.modules["open_clip"]
for name in ("open_clip:ViT-B-16-SigLIP/webli", "demo"):
    import_lean(name)
    assert sys.modules["open_clip"] is whole
again = build_model("demo", demo, ())
assert isinstance(again.module, whole.model.CLIP)
"""


def test_a_model_after_the_other_finds_the_libraries_that_it_needs():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
