"""docs/serving.md: its Python makes the version's bytes in a model that talos_ray did not load."""

import re
from pathlib import Path

import torch
from recorded import made
from served import add_version
from transformers import AutoModelForCausalLM

PAGE = Path(__file__).parents[2] / "docs/serving.md"


def test_an_exported_delta_makes_a_version_in_place_and_the_base_again(tmp_path, monkeypatch):
    run = made(tmp_path, "llama")
    second = add_version(run, {"animals": 0.5})
    monkeypatch.chdir(tmp_path)
    run.export("exported", 1, delta_only=True)
    run.export("second", second, delta_only=True)
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "patches_of" in b)
    page: dict = {}
    exec(block, page)
    assert all((indices.diff() > 0).all() for _, indices, _ in page["patches"])  # as vLLM's sparse disk backend wants them
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="float32")

    versions = {n: dict(run.model(n).module.named_parameters()) for n in (0, 1, second)}

    def holds(version: int) -> bool:
        wanted = versions[version]
        found = {name: t.detach() for name, t in model.named_parameters()}
        assert found.keys() == wanted.keys()
        return all(torch.equal(found[name], wanted[name]) for name in wanted)

    assert holds(0) and not holds(1)
    before = page["apply"](model, page["patches"])
    assert holds(1) and not holds(0)
    page["apply"](model, before)
    assert holds(0)
    page["apply"](model, page["patches_of"](page["load_file"]("second/delta.safetensors")))
    assert holds(second) and not holds(1)


def test_the_page_names_what_there_is():
    text = PAGE.read_text()
    from talos_ray.serving.inputs import MOST
    from talos_ray.serving.switch import KEPT_BYTES

    assert f"at most {MOST:,}" in text and f"{KEPT_BYTES >> 30} GB" in text
