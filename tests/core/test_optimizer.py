"""The sparse optimizer against torch.optim.AdamW on the masked weights, and what it must leave alone."""

import dataclasses

import pytest
import torch
from torch import nn

from talos_ray.core.finetune import Looks, Plan, balanced, finetune
from talos_ray.core.layout import eligible_layout
from talos_ray.core.mask import mask_from_flags
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.core.seeds import derive_seed


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))


X = torch.randn(64, 10, generator=torch.Generator().manual_seed(1))
Y = X[:, :4].argmax(-1)


def masked(module, share=0.3, skip=()):
    layout = eligible_layout(module)
    flags = torch.rand(layout.total, generator=torch.Generator().manual_seed(5)) < share
    for name, f in layout.split(flags).items():
        if name.startswith(tuple(skip)) and skip:
            f.zero_()
    return mask_from_flags(layout, flags)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_adamw_on_the_masked_weights(clip, decay):
    ours, theirs = model(), model()
    mask = masked(ours)
    sparse = SparseAdamW(ours, mask, lr=1e-2, weight_decay=decay, clip_norm=clip)
    params = dict(theirs.named_parameters())
    dense = torch.optim.AdamW(params.values(), lr=1e-2, weight_decay=0.0)
    flags = {n: f.view(params[n].shape) for n, f in mask.layout.split(mask.flags).items()}
    for step in range(30):
        lr = 1e-2 / (1 + step)
        nn.functional.cross_entropy(ours(X), Y).backward()
        sparse.step(lr)
        dense.zero_grad()
        nn.functional.cross_entropy(theirs(X), Y).backward()
        for n, p in params.items():  # plain AdamW, kept to the mask by hand
            p.grad *= flags[n]
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        with torch.no_grad():
            for n, p in params.items():
                p.mul_(torch.where(flags[n], 1 - lr * decay, 1.0))
        dense.param_groups[0]["lr"] = lr
        dense.step()
    for n, p in ours.named_parameters():
        torch.testing.assert_close(p.detach(), params[n].detach(), rtol=1e-6, atol=1e-6)


def test_everything_outside_the_mask_keeps_its_bits():
    module = model()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    mask = masked(module)
    optimizer = SparseAdamW(module, mask, lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        nn.functional.cross_entropy(module(X), Y).backward()
        optimizer.step()
    for n, f in mask.layout.split(mask.flags).items():
        now, then = dict(module.named_parameters())[n].detach().view(-1), before[n].view(-1)
        assert torch.equal(now[~f], then[~f])
        assert not f.any() or not torch.equal(now[f], then[f])


def test_state_is_k_and_no_dense_gradient_stays():
    module = model()
    mask = masked(module, skip=("0.", "1."))
    optimizer = SparseAdamW(module, mask, lr=1e-2)
    nn.functional.cross_entropy(module(X), Y).backward()
    assert all(p.grad is None for p in module.parameters())
    optimizer.step()
    assert {n: t.numel() for n, t in optimizer.state().items()} == {
        "values": mask.k,
        "exp_avg": mask.k,
        "exp_avg_sq": mask.k,
        "step": 1,
    }
    assert not module[0].weight.requires_grad and not module[1].weight.requires_grad and module[3].weight.requires_grad


def test_backward_stops_at_the_lowest_masked_tensor():
    module = model()
    SparseAdamW(module, masked(module, skip=("0.", "1.")), lr=1e-2)
    reached = []
    module[2].register_full_backward_hook(lambda *a: reached.append(2))
    module[4].register_full_backward_hook(lambda *a: reached.append(4))
    nn.functional.cross_entropy(module(X), Y).backward()
    assert reached == [4]


def plan(steps=40):
    return Plan("task", len(X), steps, 16, 1e-2, 5, seed=3)


def train(module, start=None, steps=40, stop=None, **options):
    optimizer = SparseAdamW(module, masked(module), lr=1e-2)
    saved = {}

    def on_step(step, loss):
        saved[step] = optimizer.state()
        if step == stop:
            raise KeyboardInterrupt

    try:
        losses = finetune(
            optimizer, plan(steps), module, lambda i: (X[i], Y[i]), start=start, on_step=on_step, **options
        )
    except KeyboardInterrupt:
        losses = None
    optimizer.close()
    return optimizer.values.detach().clone(), losses, saved


def test_label_noise_makes_a_share_of_the_samples_wrong_and_always_the_same_ones():
    noisy = Plan("task", 4000, 10, 16, 1e-2, 5, seed=3, label_noise=0.3, classes=5)
    index, labels = torch.arange(4000), torch.arange(4000) % 5
    found = noisy.labels_at(index, labels)
    assert 0.27 < float((found != labels).float().mean()) < 0.33 and set(found.tolist()) == set(range(5))
    some = torch.tensor([7, 1234, 3999, 2])
    assert torch.equal(noisy.labels_at(some, labels[some]), found[some])
    other = dataclasses.replace(noisy, seed=4).labels_at(index, labels)
    with pytest.raises(ValueError, match=r"task 'task': label_noise is 0.3 and classes 0; wanted the number"):
        dataclasses.replace(noisy, classes=0)
    assert not torch.equal(other, found) and torch.equal(plan().labels_at(index[:5], labels[:5]), labels[:5])


def test_training_lowers_the_loss():
    _, losses, _ = train(model())
    assert len(losses) == 40 and sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_micro_batches_of_any_size_add_up_to_the_same_training():
    whole, losses, _ = train(model())
    for size in (1, 5, 100):
        values, found, _ = train(model(), micro_batch_size=size)
        torch.testing.assert_close(values, whole, rtol=1e-3, atol=1e-4)
        assert found == pytest.approx(losses, rel=1e-3)


def test_a_batch_of_1024_in_sixteen_parts_is_one_of_1024():
    """As T5 is trained in the paper: 16 times 64 samples an update, at a constant rate without warm-up."""
    inputs = torch.randn(2048, 10, generator=torch.Generator().manual_seed(7))
    labels = inputs[:, :4].argmax(-1)
    constant = Plan("task", 2048, 6, 1024, 1e-3, 0, seed=3, schedule="constant")
    assert [constant.lr_at(step) for step in range(6)] == [1e-3] * 6
    assert dataclasses.replace(constant, schedule="cosine").lr_at(5) < 1e-4
    values = []
    losses = []
    for size in (None, 64):
        module = model()
        optimizer = SparseAdamW(module, masked(module), lr=1e-3)
        found = finetune(optimizer, constant, module, lambda i: (inputs[i], labels[i]), micro_batch_size=size)
        values.append(optimizer.values.detach().clone())
        losses.append(found)
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-6)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_resumed_training_ends_on_the_same_bits():
    straight, _, _ = train(model())
    _, _, saved = train(model(), stop=17)
    torch.rand(100)  # what else the process drew must not matter
    resumed, losses, _ = train(model(), start=(17, saved[17]))
    assert len(losses) == 23 and torch.equal(straight, resumed)


def test_dropout_is_resumed_too():
    def dropping():
        return nn.Sequential(model(), nn.Dropout(0.3))

    straight, _, saved = train(dropping().train())
    resumed, _, _ = train(dropping().train(), start=(11, saved[11]))
    assert torch.equal(straight, resumed)


def test_a_loss_that_is_not_finite_names_task_and_setting():
    module = model()
    with torch.no_grad():
        module[5].bias.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"task 'task'.*lower train.lr"):
        train(module)


def test_batches_are_epochs_of_permutations():
    p = plan()
    first = torch.cat([p.batch_at(s) for s in range(4)])
    assert sorted(first.tolist()) == list(range(64))
    assert not torch.equal(first, torch.cat([p.batch_at(s) for s in range(4, 8)]))
    assert torch.equal(p.batch_at(2), p.batch_at(2))


def test_schedule_warms_up_and_falls_to_zero():
    p = plan()
    rates = [p.lr_at(s) for s in range(40)]
    assert rates[0] == pytest.approx(2e-3) and max(rates) == pytest.approx(1e-2) and rates[-1] < 1e-4


def test_seeds_do_not_depend_on_the_process():
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1) < 1 << 63
    assert derive_seed(0, "a", 1) != derive_seed(0, "b", 1)


def looked(module, looks_every=4, patience=None, **options):
    """Trained with looks at samples that are not trained on, of which the loss falls and then rises."""
    held = torch.randn(40, 10, generator=torch.Generator().manual_seed(7))
    wrong = held[:, 4:8].argmax(-1)  # what the training leads away from

    @torch.no_grad()
    def loss() -> float:
        return float(nn.functional.cross_entropy(module(held), wrong))

    looks = Looks(loss, looks_every, patience)
    values, losses, saved = train(module, looks=looks, **options)
    return values, losses, saved, looks, loss


def test_the_weights_that_did_best_on_validation_are_kept():
    module = model()
    values, losses, saved, looks, loss = looked(module)
    assert [step for step, _ in looks.seen] == [*range(4, 41, 4)] and len(losses) == 40
    assert looks.best_at < 40 and min(found for _, found in looks.seen) == loss()  # they are in the module
    assert torch.equal(values, saved[looks.best_at]["values"])
    straight, _, _ = train(model())
    assert torch.equal(straight, saved[40]["values"])  # to look changes no step


def test_training_stops_when_validation_gets_no_better_and_goes_on_from_a_checkpoint_alike():
    values, losses, saved, looks, _ = looked(model(), patience=2)
    stopped = len(losses)
    assert stopped == looks.best_at + 8 < 40
    for at in (looks.best_at, stopped - 3, stopped):  # the last as if it had been killed before its delta was stored
        module = model()
        _, _, _, before, _ = looked(module, patience=2, stop=at)
        state = saved[at] | before.state()
        again, more, _, seen, _ = looked(model(), patience=2, start=(at, state))
        assert torch.equal(again, values) and len(more) == stopped - at and seen.seen == looks.seen


def test_balanced_weights_make_rare_classes_count_as_much():
    labels = torch.tensor([0] * 6 + [1] * 2 + [3] * 1)
    weights = balanced(labels, 4)
    assert weights == pytest.approx((9 / 18, 9 / 6, 0.0, 9 / 3))
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    each = nn.functional.cross_entropy(logits, labels, reduction="none")
    by_class = [each[labels == c].mean() for c in (0, 1, 3)]
    weighted = dataclasses.replace(plan(), class_weights=weights).loss(labels, logits)
    torch.testing.assert_close(weighted / 9, torch.stack(by_class).mean())
