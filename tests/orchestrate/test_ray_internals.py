"""What Ray does not promise may be gone tomorrow: then its public ways serve, and `check` says so."""

import importlib

import pytest
from ray.train.torch import TorchTrainer

from talos_ray.orchestrate import ray_internals as internals


def test_the_pinned_ray_has_all_of_it():
    assert internals.missing() == [] and internals.gone() == []
    assert internals.lean_trainer(several=True, here=True).__mro__[1] is TorchTrainer


@pytest.mark.parametrize(
    ("module", "names", "lacks"),
    [
        ("ray.train.v2._internal.execution.scaling_policy", ["FixedScalingPolicy"], internals.POLICY),
        ("ray.train.v2.api.data_parallel_trainer", ["DataParallelTrainer", "_create_default_callbacks"], internals.CALLBACKS),
        ("ray.train.v2.api.data_parallel_trainer", ["DataParallelTrainer", "_initialize_and_run_controller"], internals.CALLBACKS),
    ],
)  # fmt: skip
def test_what_is_gone_is_named_and_the_public_trainer_serves(monkeypatch, module, names, lacks):
    owner = importlib.import_module(module)
    for name in names[:-1]:
        owner = getattr(owner, name)
    monkeypatch.delattr(owner, names[-1])
    assert lacks in internals.missing() and internals.gone() == []  # not looked for in the Ray that was tested
    monkeypatch.setattr(internals, "version", lambda package: "2.61.0")
    assert lacks in internals.gone()
    assert internals.lean_trainer(several=False, here=True) is TorchTrainer
