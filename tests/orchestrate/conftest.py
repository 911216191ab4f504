"""A finished run, for all orchestration tests."""

import copy

import pytest

import talos_ray


@pytest.fixture(scope="session")
def finished(ray_here, small_spec, tmp_path_factory):
    """An undisturbed run of the small spec, and the spec's values."""
    values = {**small_spec, "output": str(tmp_path_factory.mktemp("finished") / "run")}
    return talos_ray.edit(**copy.deepcopy(values)), values
