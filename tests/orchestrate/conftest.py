"""One real local Ray for all orchestration tests; it is this process's own and ends with it."""

import copy

import pytest

import talos_ray
from talos_ray.config import Cluster


@pytest.fixture(scope="session")
def ray_here():
    import ray

    from talos_ray.orchestrate.cluster import connect

    connect(Cluster(), verbose=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def finished(ray_here, small_spec, tmp_path_factory):
    """An undisturbed run of the small spec, and the spec's values."""
    values = {**small_spec, "output": str(tmp_path_factory.mktemp("finished") / "run")}
    return talos_ray.edit(**copy.deepcopy(values)), values
