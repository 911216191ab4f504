"""What an approver and an engineer do with a run, by the command alone: edit, add, see a gate fail, forget, compare,
undo, export, verify."""

import csv
import json
import subprocess
import sys

import pytest
import yaml

from talos_ray.cli import main


@pytest.fixture
def talos(ray_here, tmp_path, monkeypatch, capsys):
    """`talos` in a folder of its own, on a Ray that runs already; `tests/test_cli.py` has the command as it is installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["talos", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said.out[-2000:] + said.err[-2000:]
        return said.out + (said.err if code else "")

    return call


@pytest.mark.slow  # every one of its steps is also tested where it belongs
def test_a_change_is_made_held_undone_and_proved(talos, small_spec, sides, tmp_path):
    small = {**small_spec, "output": "run", "baseline": {"enabled": False}, "tasks": ["demo:pointers"]}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(small))
    (tmp_path / "sides.yaml").write_text(yaml.safe_dump(sides))
    talos("edit", "spec.yaml")
    talos("add", "run", "sides.yaml")
    (tmp_path / "strict.yaml").write_text(
        yaml.safe_dump({**small, "tasks": ["demo:pointers", sides], "gate": {"target_gain": 0.9}})
    )
    held = talos("edit", "strict.yaml", code=3)
    assert "version 3 is kept aside, head is still 2" in held and "wanted 0.900" in held
    assert "version 3 of run" in (refused := talos("rollback", "run", 3, code=2)) and "was never in force" in refused
    talos("approve", "run", 3, "--by", "J. Doe", "--reason", "a walk")
    forgotten = talos("forget", "run", "pointers", "--keep", "0.5", "--at-most", "1.0", code=3)
    assert "version 4 is kept aside, head is still 3" in forgotten  # the gate asks for its gain again
    found = json.loads(talos("diff", "run", 0, 2, "--json"))
    assert set(found["tasks"]) <= {"pointers", "sides", "held"} and found["tasks"]["held"]["n"] == 24
    talos("compare", "run", 0, 2, "--out", "changed.csv")
    rows = list(csv.DictReader((tmp_path / "changed.csv").read_text().splitlines()))
    assert {r["became"] for r in rows} <= {"right", "wrong", "wrong otherwise"} and rows
    assert "is now version 2" in talos("rollback", "run", 2, "--reason", "as it was")
    talos("export", "run", "out")
    plain = "import open_clip; m, _ = open_clip.create_model_from_pretrained('local-dir:out'); print(sum(p.numel() for p in m.parameters()))"
    loaded = subprocess.run([sys.executable, "-c", plain], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert loaded.returncode == 0 and int(loaded.stdout) > 1_000_000, loaded.stderr[-1000:]
    assert "every file is as recorded" in talos("verify", "run", "--deep")
    operations = [e["operation"] for e in json.loads(talos("log", "run", "--json"))]
    assert operations.count("approve") == 1 and operations[-1] == "rollback" and "forget" in operations
    path = tmp_path / "run/deltas/sides.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert "deltas/sides.safetensors was changed" in talos("verify", "run", code=1)
