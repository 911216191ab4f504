"""The linear probe on features whose content is known."""

import torch

from talos_ray.core.probe import linear_probe


def test_a_linear_probe_finds_what_the_features_hold_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    x = torch.randn(300, 8, generator=generator)
    assert linear_probe(x[:200], labels[:200], x[200:], labels[200:])[0] < 55  # chance is 33 of 100
    x[torch.arange(300), labels] += 6
    found = linear_probe(x[:200], labels[:200], x[200:], labels[200:])
    assert found[1] == 100 and found[0] > 95
    assert found == linear_probe(x[:200], labels[:200], x[200:], labels[200:])
