"""What talos_ray uses of Ray that Ray does not promise, item by item. Where a later Ray lacks one, its public way serves: as right, and
slower to start."""

from __future__ import annotations

import inspect
from importlib.metadata import version

TESTED = "2.60."  # Ray that has all of it
NODE_ID = "ray.io/node-id"  # label by which a task is sent to a node
POLICY = "ray.train.v2: a scaling policy that asks no autoscaler"
CALLBACKS = "ray.train.v2: the list of a trainer's default callbacks"
PLAIN = "ray.train.v2: a trainer without a process group"


def gone() -> list[str]:
    """What the installed Ray lacks, in words; looked at in earnest only where it is not the one that was tested."""
    return [] if version("ray").startswith(TESTED) else missing()


def missing() -> list[str]:
    """What of the items below cannot be used with the installed Ray."""
    found = []
    try:
        from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

        names = ("_send_resource_request", "_maybe_send_resource_request", "_cancel_resource_request")
        if not all(hasattr(FixedScalingPolicy, name) for name in names):
            found.append(POLICY)
    except ImportError:
        found.append(POLICY)
    try:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        took = inspect.signature(DataParallelTrainer._initialize_and_run_controller).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in took.values()):
            found.append(POLICY)
        if not hasattr(DataParallelTrainer, "_create_default_callbacks"):
            found.append(CALLBACKS)
    except (ImportError, AttributeError):
        found += [PLAIN, CALLBACKS]
    return sorted(set(found))


def lean_trainer(*, several: bool, here: bool) -> type:
    """Ray Train's trainer without what a team has no use for, each a process that takes seconds to start: a keeper of Ray Datasets, and
    on a Ray of this machine one that asks an autoscaler for nodes and one that outlives it all to hand back places. Ray's own
    `TorchTrainer` where it cannot be had.

    Args:
        several: whether a team has several workers, which need a process group.
        here: whether Ray is one of our own, on this machine.
    """
    lacks = missing()
    if several or lacks:
        from ray.train.torch import TorchTrainer as trainer
    else:  # so Ray Train's controller, a process a team, need not import torch
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer as trainer
    if lacks:
        return trainer
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    unused = ["DatasetsCallback"] + (["PlacementGroupCleanerCallback"] if here else [])

    class Unasked(FixedScalingPolicy):
        def _send_resource_request(self) -> None:
            pass

        _maybe_send_resource_request = _cancel_resource_request = _send_resource_request

    class Team(trainer):
        def _create_default_callbacks(self) -> list:
            return [c for c in super()._create_default_callbacks() if type(c).__name__ not in unused]

        def _initialize_and_run_controller(self, **how):
            policy = {"scaling_policy": Unasked(self.scaling_config)} if here else {}
            return super()._initialize_and_run_controller(**{**how, **policy})

    return Team
