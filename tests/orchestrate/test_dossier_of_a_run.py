"""The dossier of a run that Ray made, whose mask was calibrated, whose tasks were trained and whose merge was searched."""

import json

import pytest

import talos_ray


@pytest.mark.slow
def test_every_stage_of_a_real_run_is_counted(finished, tmp_path):
    run = talos_ray.open_run(finished[0].path)
    facts = run.dossier(1, tmp_path / "dossier")
    compute = facts["compute"]
    stages = compute["stages"]
    assert compute["why_not"] is None and stages.pop("choice") == 0
    assert all(operations > 0 for operations in stages.values()), stages
    assert compute["in_all"] == pytest.approx(sum(stages.values()))
    # Steps and batches are those that the spec asked for; a dense step is more than a sparse one, and no part of it.
    for (trained,) in compute["tasks"].values():
        assert trained["steps"] == 12 and trained["batch"] == 32
    assert compute["dense"] > stages["training"]
    assert {found["state"] for found in facts["data"].values()} == {"as recorded"}
    assert json.loads((tmp_path / "dossier/dossier.json").read_text())["compute"]["in_all"] == compute["in_all"]
