"""Linear heads on features whose content is known."""

import torch

from talos_ray.core.probe import fitted_head, linear_head, linear_probe, scored


def test_a_linear_probe_finds_what_the_features_hold_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    x = torch.randn(300, 8, generator=generator)
    assert linear_probe(x[:200], labels[:200], x[200:], labels[200:])[0] < 55  # chance is 33 of 100
    x[torch.arange(300), labels] += 6
    found = linear_probe(x[:200], labels[:200], x[200:], labels[200:])
    assert found[1] == 100 and found[0] > 95
    assert found == linear_probe(x[:200], labels[:200], x[200:], labels[200:])


def test_a_head_that_is_drawn_hard_stays_where_it_starts():
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(200, 6, generator=generator), torch.arange(200) % 4
    start = torch.randn(4, 7, generator=generator)
    distances = []
    for decay in (1e3, 1.0, 1e-3):
        head = linear_head(x, labels, 4, start, decay)
        distances.append(float((head - start)[:, :-1].norm()))
    assert distances[0] < 0.01 < distances[1] < distances[2]


def test_a_teacher_may_stand_for_labels():
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(200, 6, generator=generator), torch.arange(200) % 4
    sure = torch.nn.functional.one_hot(labels, 4).float()
    torch.testing.assert_close(linear_head(x, labels, 4), linear_head(x, sure, 4), rtol=1e-3, atol=1e-3)
    unsure = torch.full((200, 4), 0.25)
    assert float(linear_head(x, unsure, 4).abs().max()) < 1e-3  # it says nothing, and so does the head


def test_held_out_inputs_say_how_far_a_head_moves():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    x = torch.randn(400, 5, generator=generator)
    x[:, 0] += 3.0 * labels
    start = torch.zeros(2, 6)
    start[1, 0], start[1, -1] = 1.0, -1.5  # as good as a head can be
    held_out, wanted = x[300:], labels[300:]
    noise = torch.randint(2, (300,), generator=generator)
    assert torch.equal(fitted_head(x[:300], noise, start, held_out, wanted), start)  # nothing that was fitted is better
    wrong = -start
    fitted = fitted_head(x[:300], labels[:300], wrong, held_out, wanted)
    assert int((scored(held_out, fitted).argmax(-1) == wanted).sum()) > 85 > int((scored(held_out, wrong).argmax(-1) == wanted).sum())
