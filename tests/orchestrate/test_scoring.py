"""Test data in parts, and small pieces of work in lists: nothing twice, nothing left out, the same answers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from talos_ray.orchestrate import scoring
from talos_ray.orchestrate.plan import prepare
from talos_ray.orchestrate.scoring import LISTS, TESTED, in_lists, rows_of_parts
from talos_ray.orchestrate.worker import Shared, Workbench, freeze
from talos_ray.progress import Progress
from talos_ray.spec import make_spec


@given(st.integers(0, 3 * TESTED + 5))
def test_every_row_of_a_large_set_is_in_one_part(size):
    parts = rows_of_parts(size)
    assert [row for start, stop in parts for row in range(start, stop)] == list(range(size))
    assert parts and all(start % TESTED == 0 and stop - start <= TESTED for start, stop in parts)


@given(st.lists(st.tuples(st.integers(1, TESTED), st.integers(0, 2)), max_size=60), st.integers(1, 9))
def test_every_piece_is_in_one_list_of_its_arm_and_no_worker_waits_long_for_another(pieces, workers):
    sizes = [size for size, _ in pieces]
    arms = [arm for _, arm in pieces]
    lists = in_lists(sizes, workers, arms)
    assert [place for places in lists for place in places] == list(range(len(pieces)))
    for places in lists:
        assert len({arms[place] for place in places}) == 1
        # A list is one large piece, or no more than its share.
        assert len(places) == 1 or sum(sizes[place] for place in places) <= min(TESTED, -(-sum(sizes) // (LISTS * workers)))


def test_small_tasks_share_a_list_and_a_large_one_has_several():
    assert [len(places) for places in in_lists([6] * 1000, workers=8)] == [31] * 32 + [8]
    assert [len(places) for places in in_lists([600, 600, TESTED, TESTED], workers=1)] == [2, 1, 1]
    assert in_lists([], workers=2) == []


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
