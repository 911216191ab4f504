"""The learned merge: gradients, segments, resumption, and what learning leaves behind."""

import pytest
import torch
from torch import nn

from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.layout import eligible_layout, fingerprint
from talos_ray.core.learned import LearnedCoefficients, LearnedHeads, MergePlan, agreement_loss, learn
from talos_ray.core.mask import mask_from_flags, select
from talos_ray.core.probe import scored
from talos_ray.core.segments import Blend, segments_of

GRANULARITIES = ("task", "group", "tensor", "row")
MASKS = ("rows", "elements", "whole tensors", "mixed")
TASKS = ("b", "a", "c")  # not in the order of their names


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))


def mask_of(module: nn.Module, kind: str):
    layout = eligible_layout(module)
    flags = select(layout, "random", 0.4, granularity="element" if kind == "elements" else "row")
    if kind == "whole tensors":
        flags.zero_()
        layout.split(flags)["3.weight"][:] = True
        layout.split(flags)["0.bias"][:] = True
    if kind == "mixed":
        layout.split(flags)["0.weight"][3] ^= True
    return mask_from_flags(layout, flags)


def deltas_of(mask, tasks=TASKS) -> list[Delta]:
    generator = torch.Generator().manual_seed(1)
    return [Delta(t, 0.3 * torch.randn(mask.k, generator=generator), "base", mask.fingerprint) for t in tasks]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(40, 6, generator=generator), torch.randint(3, (40,), generator=generator)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", MASKS)
def test_the_gradient_is_that_of_finite_differences(granularity, kind):
    module = network()
    mask = mask_of(module, kind)
    segments = segments_of(mask, granularity, 2)
    x, y = data()
    learner = LearnedCoefficients(module, mask, deltas_of(mask), segments, "base", 0.3)
    agreement_loss(module(x), None, y).backward()
    learner.pull()
    found = dict(zip(learner.tasks, learner.values.grad.clone(), strict=True))
    learner.close()
    # Far from float32's rounding: the same network in float64, every coefficient moved by a little either way.
    exact = network().double()
    params = dict(exact.named_parameters())
    base = {n: p.detach().clone() for n, p in params.items()}
    rows = {d.task: d.values.double() for d in deltas_of(mask)}

    def loss(coefficients: dict[str, torch.Tensor]) -> float:
        change = sum(segments.expand(a) * rows[t] for t, a in coefficients.items())
        place = 0
        with torch.no_grad():
            for name, index in mask.indices.items():
                flat = base[name].flatten().clone()
                flat[index] += change[place : place + len(index)]
                params[name].copy_(flat.view_as(base[name]))
                place += len(index)
            return float(agreement_loss(exact(x.double()).double(), None, y))

    at = {t: torch.full((segments.count,), 0.3, dtype=torch.float64) for t in TASKS}
    for task in TASKS:
        for segment in range(0, segments.count, max(1, segments.count // 5)):
            ends = []
            for step in (1e-3, -1e-3):
                moved = {t: a.clone() for t, a in at.items()}
                moved[task][segment] += step
                ends.append(loss(moved))
            slope = (ends[0] - ends[1]) / 2e-3
            assert float(found[task][segment]) == pytest.approx(slope, abs=2e-4), (task, segment)


@pytest.mark.parametrize("kind", MASKS)
def test_segments_cover_the_mask_once_and_sums_are_theirs(kind):
    mask = mask_of(network(), kind)
    x = torch.arange(float(mask.k))
    for granularity in GRANULARITIES:
        segments = segments_of(mask, granularity, 2)
        assert int(segments.lengths.sum()) == mask.k and set(segments.owner.tolist()) == set(range(segments.count))
        assert float(segments.sums(x).sum()) == pytest.approx(float(x.sum()))
        number = segments.expand(torch.arange(float(segments.count)))
        for segment in range(segments.count):
            assert float(segments.sums(x)[segment]) == pytest.approx(float(x[number == segment].sum()))
    counts = [segments_of(mask, g, 2).count for g in GRANULARITIES]
    assert counts == sorted(counts) and counts[0] == 1 and counts[2] == len(mask.indices)
    touched = sum(len({i // (m.numel() // len(m)) for i in mask.indices[n].tolist()}) for n, m in network().named_parameters() if n in mask.indices)  # fmt: skip
    assert counts[3] == touched


def test_coefficients_of_fine_segments_that_are_all_alike_are_one_coefficient():
    module = network()
    mask = mask_of(module, "rows")
    deltas = deltas_of(mask)
    found = []
    for granularity in (None, *GRANULARITIES):
        blend = Blend({}, granularity, 2)
        segments = blend.segments(mask)
        values = {t: 0.4 if segments is None else torch.full((segments.count,), 0.4) for t in ("a", "c")}
        composer = Composer(module, mask, deltas, "base", segments)
        composer.compose(values)
        found.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
        assert Blend(values, granularity, 2).means(mask) == pytest.approx({"a": 0.4, "c": 0.4})
        composer.rollback()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-6)


def test_a_task_whose_coefficients_are_left_out_leaves_no_trace():
    mask = mask_of(network(), "rows")
    segments = segments_of(mask, "row")
    coefficients = {t: torch.linspace(-1, 1, segments.count) + i for i, t in enumerate(TASKS)}
    bits = []
    for tasks in (TASKS, ("a", "c")):
        module = network()
        Composer(module, mask, deltas_of(mask), "base", segments).compose({t: coefficients[t] for t in ("a", "c")})
        bits.append(fingerprint(dict(module.state_dict())))
        module = network()
        kept = [d for d in deltas_of(mask) if d.task in tasks and d.task != "b"]
        Composer(module, mask, kept, "base", segments).compose({t: coefficients[t] for t in ("a", "c")})
        bits.append(fingerprint(dict(module.state_dict())))
    assert len(set(bits)) == 1


def test_coarse_coefficients_are_refined_to_the_same_model():
    mask = mask_of(network(), "mixed")
    rows = segments_of(mask, "row")
    for granularity in GRANULARITIES:
        coarse = segments_of(mask, granularity, 2)
        blend = Blend({"a": torch.linspace(0, 1, coarse.count)}, granularity, 2)
        refined = blend.refined(mask, rows, ["a", "b"])
        assert torch.equal(rows.expand(refined[0]), coarse.expand(blend.values["a"])) and not refined[1].any()
    assert torch.equal(Blend({"a": 0.5}).refined(mask, rows, ["a"]), torch.full((1, rows.count), 0.5))


def taught(learner: LearnedCoefficients, module: nn.Module, steps: int, start: int = 0, until: int | None = None) -> None:
    x, y = data()
    plan = MergePlan(steps=steps, lr=0.05, seed=0)

    def backward(step: int) -> float:
        rows = plan.rows_at(step, "a", len(x), 8)
        loss = agreement_loss(module(x[rows]), None, y[rows])
        loss.backward()
        return float(loss.detach())

    learn(learner, plan, backward, start=start, until=until)


def test_learning_lowers_the_loss_and_gives_the_base_back():
    module = network()
    before = fingerprint(dict(module.state_dict()))
    mask = mask_of(module, "rows")
    x, y = data()
    learner = LearnedCoefficients(module, mask, deltas_of(mask), segments_of(mask, "row"), "base", 0.0)
    with torch.no_grad():
        first = float(agreement_loss(module(x), None, y))
    taught(learner, module, 60)
    with torch.no_grad():
        last = float(agreement_loss(module(x), None, y))
    assert last < 0.9 * first
    learner.close()
    assert fingerprint(dict(module.state_dict())) == before
    assert all("forward" not in m.__dict__ for m in module.modules())


def test_a_restart_ends_with_the_same_bits():
    found = []
    for cut in (None, 7):
        module = network()
        mask = mask_of(module, "rows")
        make = lambda module=module, mask=mask: LearnedCoefficients(module, mask, deltas_of(mask), segments_of(mask, "row"), "base", 0.3)  # noqa: E731  # fmt: skip
        learner = make()
        if cut is not None:
            taught(learner, module, 20, until=cut)
            state = learner.state()
            learner.close()
            learner = make()
            learner.load(state)
        taught(learner, module, 20, start=cut or 0)
        found.append(learner.state())
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def test_heads_learn_with_the_coefficients_and_restart_with_the_same_bits():
    x, y = data()
    plan = MergePlan(steps=20, lr=0.05, seed=0)
    start = {"a": torch.randn(3, 9, generator=torch.Generator().manual_seed(5))}
    found = []
    for cut in (None, 7):
        module = network()
        mask = mask_of(module, "rows")
        learner = LearnedCoefficients(module, mask, deltas_of(mask), segments_of(mask, "row"), "base", 0.3)
        heads = LearnedHeads(start, 0.1)

        def backward(step: int) -> float:
            rows = plan.rows_at(step, "a", len(x), 8)
            features = module[:5](x[rows])  # noqa: B023 - called before the next turn
            loss = agreement_loss(scored(features, heads.heads["a"]), None, y[rows])  # noqa: B023
            loss.backward()
            return float(loss.detach())

        learn(learner, plan, backward, heads, until=cut)
        if cut is not None:
            states = learner.state(), heads.state()
            heads = LearnedHeads(start, 0.1)
            learner.load(states[0])
            heads.load(states[1])
            learn(learner, plan, backward, heads, start=cut)
        found.append({**learner.state(), **heads.state()})
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
    assert not torch.equal(found[0]["head/a"], start["a"])
    assert LearnedHeads({}, 0.1).state() == {}


def test_only_what_moves_is_learned():
    module = network()
    mask = mask_of(module, "rows")
    segments = segments_of(mask, "row")
    first = torch.linspace(-1, 1, 3 * segments.count).view(3, -1)
    learner = LearnedCoefficients(module, mask, deltas_of(mask), segments, "base", first, moving=["b"])
    taught(learner, module, 5)
    assert learner.tasks == ["a", "b", "c"]
    changed = [not torch.equal(a, b) for a, b in zip(first, learner.values.detach(), strict=True)]
    assert changed == [False, True, False]


def test_a_loss_that_is_not_finite_ends_learning_and_names_the_step():
    module = network()
    mask = mask_of(module, "rows")
    learner = LearnedCoefficients(module, mask, deltas_of(mask), segments_of(mask, "task"), "base", 0.3)
    plan = MergePlan(steps=5, lr=0.1, seed=0)
    with pytest.raises(FloatingPointError, match="loss is nan at step 2; wanted a finite loss; look for inputs that are NaN"):
        learn(learner, plan, lambda step: float("nan") if step == 2 else 1.0)


def test_the_losses_are_what_they_say():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    same = logits.log_softmax(-1)
    assert float(agreement_loss(logits, same)) == pytest.approx(0.0, abs=1e-7)
    other = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    wanted = (other.exp() * (other - same)).sum(-1).mean()
    assert float(agreement_loss(logits, other)) == pytest.approx(float(wanted))
    labels = torch.tensor([0, 1])
    entropy = float(nn.functional.cross_entropy(logits, labels))
    assert float(agreement_loss(logits, None, labels)) == pytest.approx(entropy)
    assert float(agreement_loss(logits, other, labels)) == pytest.approx(float(wanted) + entropy)


def test_many_tasks_and_a_task_alone():
    module = network()
    mask = mask_of(module, "rows")
    many = [f"t{i:03d}" for i in range(300)]
    learner = LearnedCoefficients(module, mask, deltas_of(mask, many), segments_of(mask, "row"), "base", 0.001)
    taught(learner, module, 2)
    assert learner.values.shape[0] == 300 and bool(torch.isfinite(learner.values).all())
    learner.close()
    alone = LearnedCoefficients(module, mask, deltas_of(mask, ["x"]), segments_of(mask, "tensor"), "base", 0.3)
    taught(alone, module, 2)
    assert set(alone.coefficients) == {"x"}


def test_every_epoch_shows_every_input_once():
    plan = MergePlan(steps=10, lr=0.1, seed=3)
    seen = torch.cat([plan.rows_at(step, "a", 20, 5) for step in range(4)])
    assert sorted(seen.tolist()) == list(range(20))
    assert torch.equal(plan.rows_at(2, "a", 20, 5), plan.rows_at(2, "a", 20, 5))
    assert len(plan.rows_at(0, "a", 3, 12)) == 3  # fewer inputs than asked for
    assert plan.lr_at(0) == 0.1 and plan.lr_at(9) < 0.003
