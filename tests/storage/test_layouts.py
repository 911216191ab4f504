"""Whatever of the user's own lies around and below `output`: a run that is refused, that fails, or that cleans up leaves every byte."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch

import talos_ray
from talos_ray import SpecError, TalosError
from talos_ray.storage.run_folder import RunFolder

OWN = (  # files of somebody's project, below the folder that is named as output; a slash at the end: an empty folder
    "checkpoints/pets/epoch-1.pt", "checkpoints/pets/step-00000001.safetensors", "checkpoints/pets/", "checkpoints/", "choice/",
    "choice/notes.txt", "choice/trials/mine.safetensors", "choice.json", "run.json", "versions/0000.json", "history/1.json", "deltas/pets.safetensors",
    "base/model.safetensors", "baseline/results.csv", "trials/a.json", ".git/HEAD", ".hidden", ".cache/", "report/index.html", "thesis.txt",
    "mask.safetensors", "heads.safetensors", "a/b/c/d.txt", "merged/x", "predictions/0000.safetensors",
)  # fmt: skip
STEPS = {
    "refused": lambda run: None,
    "fails": lambda run: run.load_checkpoint("pets", "key"),
    "cleans up": lambda run: run.drop_checkpoints("pets"),
}


def state_of(root: Path) -> dict[str, str]:
    found = {}
    for path in sorted(root.rglob("*")):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(root))] = content
    return found


def lay(root: Path, name: str) -> None:
    path = root / name
    (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
    if not name.endswith("/"):
        path.write_text('{"mine": 1}')


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside others"])
@pytest.mark.parametrize("name", OWN)
def test_what_is_somebodys_own_is_refused_and_stays(tmp_path, name, beside):
    project = tmp_path / "project"
    lay(project, name)
    for other in OWN[:3] if beside else ():
        lay(project, other)
    before = state_of(tmp_path)
    run = RunFolder(str(project))
    with pytest.raises(SpecError, match="holds other files and no run"):
        run.check_new()
    for step in STEPS.values():
        step(run)
        assert state_of(tmp_path) == before
    run.save_checkpoint("pets", "key", 100, {"w": torch.zeros(2)})  # as by somebody who asked nobody
    run.drop_checkpoints("pets")
    left = state_of(tmp_path)
    assert {n: left.get(n) for n in before} == before


def test_a_run_of_ours_takes_its_own_checkpoints_and_nothing_else(tmp_path):
    output = tmp_path / "work" / "run"
    for name in ("spec.yaml", "pets/1.png", "checkpoints/pets/epoch-1.pt"):
        lay(tmp_path / "work", name)
    run = RunFolder(str(output))
    run.check_new()
    run.begin({"tasks": [], "control": []}, "b" * 64, {}, {"pets": torch.ones(2, 3)}, {"pets": ["a", "b"]})
    for name in (
        "checkpoints/pets/epoch-1.pt",
        "checkpoints/pets/step-1.safetensors",
        "notes.txt",
        "checkpoints/dogs/x.pt",
    ):
        lay(output, name)
    for step in (100, 200, 300):
        run.save_checkpoint("pets", "key", step, {"w": torch.zeros(2)})
    assert sorted(os.listdir(output / "checkpoints" / "pets")) == ["epoch-1.pt", "step-00000200.safetensors", "step-00000300.safetensors", "step-1.safetensors"]  # fmt: skip
    assert run.load_checkpoint("pets", "key")[0] == 300
    before = state_of(tmp_path)
    run.drop_checkpoints("pets")
    gone = set(before) - set(state_of(tmp_path))
    assert gone == {f"work/run/checkpoints/pets/step-00000{n}00.safetensors" for n in (2, 3)}
    run.save_checkpoint("cats", "key", 1, {"w": torch.zeros(2)})
    run.drop_checkpoints("cats")
    assert not (output / "checkpoints" / "cats").exists()


@pytest.mark.slow
def test_a_real_run_its_failure_and_its_clean_up_leave_all_that_is_somebodys_own(ray_here, small_spec, tmp_path):
    """All layouts at once: around the output while a run fails and then works, and below it while it is used."""
    project = tmp_path / "project"
    for name in OWN:
        lay(project, name)
    values = {**small_spec, "baseline": {"enabled": False}, "output": str(project / "run")}
    own = state_of(project)

    def left() -> dict[str, str]:
        now = state_of(project)
        return {name: now.get(name) for name in own}

    with pytest.raises(TalosError, match="not finite|is nan"):
        talos_ray.edit(**{**values, "train": {**values["train"], "lr": 1e30}})
    assert left() == own
    run = talos_ray.edit(**values)
    assert left() == own and run.head == 1
    made = set(state_of(project / "run"))
    for name in OWN:
        if not (project / "run" / name).exists():
            lay(project / "run", name)
    # What the run made is its own to change.
    own = {name: content for name, content in state_of(project).items() if name.removeprefix("run/") not in made}
    again = {**values, "search": {**values["search"], "steps": 4}}  # learns anew, and cleans up after itself
    with pytest.raises(SpecError, match="holds other files.*'choice'"):  # it would have to clean up among them
        talos_ray.edit(**again)
    assert left() == own
    shutil.rmtree(project / "run" / "choice")
    with pytest.raises(SpecError, match="holds other files .'choice.json'"):  # it would be read as the run's own
        talos_ray.edit(**again)
    (project / "run" / "choice.json").unlink()
    own = {name: content for name, content in own.items() if not name.startswith("run/choice")}
    talos_ray.edit(**again)
    talos_ray.open_run(run.path).rollback(0)
    assert left() == own


def test_new_is_a_folder_without_any_entry(tmp_path):
    RunFolder(str(tmp_path / "absent")).check_new()
    (tmp_path / "empty").mkdir()
    RunFolder(str(tmp_path / "empty")).check_new()
    lay(tmp_path, f"killed/choice/trials/{'0a' * 32}.safetensors")  # what a search leaves that was ended
    lay(tmp_path, "killed/.run.json.0123abcd")
    RunFolder(str(tmp_path / "killed")).check_new()
