"""Test data in parts: nothing twice, nothing left out, the same answers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from talos_ray.orchestrate import scoring
from talos_ray.orchestrate.plan import prepare
from talos_ray.orchestrate.scoring import TESTED, in_parts
from talos_ray.orchestrate.worker import Shared, Workbench, freeze
from talos_ray.progress import Progress
from talos_ray.spec import make_spec


@given(st.lists(st.integers(0, 3 * TESTED + 5), max_size=12))
def test_every_row_is_in_one_part_and_no_worker_gets_more_than_its_share(sizes):
    of_task = {f"task_{i}": size for i, size in enumerate(sizes)}
    lists = in_parts(of_task)
    rows = {task: [] for task in of_task}
    for parts in lists:
        assert parts and sum(part.stop - part.start for part in parts) <= TESTED
        for part in parts:
            rows[part.task] += range(part.start, part.stop)
            assert part.start % TESTED == 0
    assert rows == {task: list(range(size)) for task, size in of_task.items()}
    assert {part.task for parts in lists for part in parts} == set(of_task)


def test_small_tasks_share_a_worker_and_a_large_one_has_several():
    assert [[part.task for part in parts] for parts in in_parts({"a": 600, "b": 600, "c": 2 * TESTED})] == [
        ["a", "b"],
        ["c"],
        ["c"],
    ]
    assert in_parts({}) == []


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    output = str(tmp_path_factory.mktemp("run") / "out")
    made = make_spec({"model": "demo", "tasks": ["demo:counts"], "control": ["demo:coloured_shapes"], "output": output})
    prepared = prepare(made, Progress())
    return Workbench(Shared(made, prepared.base, freeze(prepared.tensors), prepared.layout, prepared.heads))


@pytest.mark.parametrize("corruption", [None, "noise"])
@pytest.mark.parametrize("own", [False, True])
def test_parts_answer_as_the_whole_does(bench, corruption, own):
    frozen = bench.linear_head("counts")
    head = frozen + 0.01 * torch.randn(frozen.shape, generator=torch.Generator().manual_seed(0)) if own else None
    whole = bench.predicted("counts", head, corruption)
    size = len(bench.examples("counts", "test"))
    pieces = [bench.predicted("counts", head, corruption, range(i, min(i + 256, size))) for i in range(0, size, 256)]
    assert len(pieces) > 1 and set(whole) == {"words", "words_probability"} | (
        {"own", "own_probability"} if own else set()
    )
    joined = scoring._joined(pieces)
    assert all(np.array_equal(whole[kind], joined[kind]) for kind in whole) and set(joined) == set(whole)
