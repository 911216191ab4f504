"""Shared by all tests: a small image task made on the spot, and a small spec."""

from __future__ import annotations

import shutil

import pytest
from images import write_images

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def sides(tmp_path_factory) -> dict:
    """A task from a local CSV of image paths."""
    path = write_images(tmp_path_factory.mktemp("sides"), 120)
    return {"name": "sides", "data": path, "input": "file", "label": "side", "prompts": ["a ball lit from the {}"]}


@pytest.fixture(scope="session")
def small_spec(sides) -> dict:
    """Three tasks of three kinds, a control task, a few steps: the whole pipeline in a minute. Lacks `output`."""
    return {
        "model": "demo",
        "tasks": ["demo:pointers", "demo:scanned_digits", sides],
        "control": [{**sides, "name": "held", "prompts": ["a ball lit from the {}", "light from the {}"]}],
        "calibration": {"samples_per_task": 24, "shards_per_task": 2, "rounds": 2},
        "train": {"steps": 12, "batch_size": 32, "lr": 1e-3, "warmup_steps": 2, "checkpoint_every": 4},
        "search": {"steps": 8, "inputs": 64, "batch_size": 4, "control_batch_size": 8},
        "gate": {"strict": False},  # some 24 test inputs a task show hardly anything
        "baseline": {"enabled": True, "lr": 1e-4},
    }


@pytest.fixture(scope="session")
def ray_here():
    """One real local Ray for all tests that need one; it is this process's own and ends with it."""
    import ray

    from talos_ray.config import Cluster
    from talos_ray.orchestrate.cluster import connect

    connect(Cluster(), verbose=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def browser():
    """A real one, without a window."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("no chromium with chromedriver on this machine: no page is opened in a browser")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()
