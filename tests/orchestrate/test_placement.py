"""What fits where, and what is refused: by lists of nodes, and on the Ray of the tests."""

import pytest

from talos_ray import SpecError
from talos_ray.config import Cluster
from talos_ray.orchestrate.cluster import check_local, check_room, nodes, options, resources, room
from talos_ray.orchestrate.pool import places

BIG = ({"CPU": 8.0, "GPU": 2.0, "memory": 64e9, "accelerator_type:H100": 1.0}, {"market": "spot"})
SMALL = ({"CPU": 2.0, "memory": 8e9}, {"market": "owned"})


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        ({}, 10),
        ({"cpus_per_worker": 2}, 5),
        ({"cpus_per_worker": 3}, 2),  # the small node holds none, though both together have ten
        ({"cpus_per_worker": 0.5, "gpus_per_worker": 0.3}, 6),
        ({"gpus_per_worker": 1}, 2),
        ({"memory_gb_per_worker": 8}, 9),
        ({"accelerator_type": "H100", "gpus_per_worker": 1}, 2),
        ({"accelerator_type": "A100"}, 0),
        ({"labels": {"market": "owned"}}, 2),
        ({"labels": {"market": "owned"}, "gpus_per_worker": 1}, 0),
    ],
)
def test_a_worker_fits_on_one_node(settings, places):
    assert room(Cluster(**settings), [BIG, SMALL]) == places


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"gpus_per_worker": 3}, r"needs 3 GPUs .*the cluster has 2; lower cluster\.gpus_per_worker"),
        ({"cpus_per_worker": 9}, r"1 worker\(s\) with 9 CPU on one node each.*2 node\(s\).*places for 0"),
        ({"workers_per_task": 2, "cpus_per_worker": 5}, r"2 worker\(s\) with 5 CPU.*places for 1"),
        ({"labels": {"market": "none"}}, r"label market=none.*places for 0"),
        ({"accelerator_type": "A100"}, r"accelerator_type:A100.*places for 0"),
        ({"memory_gb_per_worker": 100}, r"100 GB of memory.*places for 0"),
    ],
)
def test_what_can_never_be_met_is_refused_with_what_there_is(settings, match):
    with pytest.raises(SpecError, match=match):
        check_room(Cluster(**settings), [BIG, SMALL], "the cluster")


def test_options_and_resources_say_the_same():
    settings = Cluster(
        cpus_per_worker=2, gpus_per_worker=0.5, memory_gb_per_worker=4, accelerator_type="H100", labels={"a": "b"}
    )
    assert resources(settings) == {"CPU": 2, "GPU": 0.5, "memory": 4e9, "accelerator_type:H100": 0.001}
    assert options(settings) == {
        "num_cpus": 2, "num_gpus": 0.5, "memory": 4_000_000_000, "accelerator_type": "H100", "label_selector": {"a": "b"},
    }  # fmt: skip


def test_a_ray_that_is_connected_already_is_the_cluster(ray_here):
    here = ray_here.get_runtime_context().gcs_address
    for address in (None, "auto", here):
        check_local(Cluster(address=address))
    for other in ("10.0.0.9:6379", "ray://head:10001", "local"):
        with pytest.raises(SpecError, match="this process is connected to the Ray at '.*leave cluster.address out"):
            check_local(Cluster(address=other))
    # What it has is what counts, not what this machine has.
    with pytest.raises(SpecError, match="needs 1 GPUs .*but the connected cluster has 0"):
        check_local(Cluster(gpus_per_worker=1))
    check_local(Cluster(gpus_per_worker=1, wait_minutes=5))  # an autoscaler may bring it


def test_as_many_workers_are_wanted_as_fit_or_as_are_asked_for(ray_here, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    fit = room(Cluster(), nodes())
    assert places(Cluster()) == fit and places(Cluster(teams=1)) == 1
    assert places(Cluster(teams=fit + 5)) == fit  # nobody brings nodes to this machine
    assert places(Cluster(teams=fit + 5, address="auto")) == fit + 5
