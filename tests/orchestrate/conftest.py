"""One real local Ray for all orchestration tests; it is this process's own and ends with it."""

import pytest

from talos_ray.config import Cluster


@pytest.fixture(scope="session")
def ray_here():
    import ray

    from talos_ray.orchestrate.cluster import connect

    connect(Cluster(), verbose=False)
    yield ray
    ray.shutdown()
