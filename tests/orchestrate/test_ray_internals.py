"""What Ray does not promise may be gone tomorrow: then its public ways serve."""

import ray

from talos_ray.orchestrate import cluster
from talos_ray.orchestrate import ray_internals as internals


def test_a_ray_that_knows_none_of_the_settings_is_started_without_them(monkeypatch):
    asked = []

    def init(**how):
        asked.append(how)
        if "_system_config" in how:
            raise ValueError("The config setting idle_worker_killing_time_threshold_ms is invalid: no such _system_config")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    cluster._start(2, address="local", _system_config=internals.LOCAL_CONFIG)
    assert asked == [{"address": "local", "_system_config": internals.LOCAL_CONFIG}, {"address": "local"}]


def test_what_the_memory_monitor_says_is_read_and_any_other_wording_is_shown_as_it_is():
    known = "Task was killed due to the node running low on memory. Memory on the node was 7.50GB used / 8.00GB limit."
    assert internals.memory_used(known) == ("7.50GB", "8.00GB")
    assert cluster.root_cause(RuntimeError(known)).startswith("a worker ran out of memory (its node used 7.50GB of 8.00GB)")
    assert cluster.root_cause(RuntimeError("memory: 7.5 of 8 GB")) == "memory: 7.5 of 8 GB"


def test_where_auto_cannot_be_asked_it_is_left_to_ray(monkeypatch):
    from ray._private import services

    def gone(*_) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(services, "get_ray_address_from_environment", gone)
    assert internals.running_here() is None
    monkeypatch.setattr(services, "get_ray_address_from_environment", lambda: "of another signature")
    assert internals.running_here() == "auto"
    monkeypatch.delattr(services, "get_ray_address_from_environment")
    assert internals.running_here() == "auto"
