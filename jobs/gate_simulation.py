"""Does the gate keep its promise? How often it lets pass what is just not good enough, and fails what is as good as the base.

    python jobs/gate_simulation.py                # a minute; exit code 1 if a figure is beyond its bound

The truth is simulated where it is hardest to tell: a version that keeps exactly what is asked, or a little less. Each cell is a number of
test inputs and a kind of model: its accuracy, and the share of answers that turn from wrong to right while others turn the other way.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np
import torch

from talos_ray import gate
from talos_ray.config import Gate
from talos_ray.core.metrics import Z95
from talos_ray.core.paired import kept_z

NUMBERS = (50, 100, 200, 480, 1000)
KINDS = (
    (0.99, 0.0),
    (0.95, 0.01),
    (0.90, 0.0),
    (0.90, 0.03),
    (0.80, 0.02),
    (0.60, 0.05),
    (0.30, 0.10),
)  # accuracy, won
ASKED = 0.95
MOST_PASSED = 0.03  # .025 is what a 95 % interval promises on one side
MOST_FAILED = 0.05


@dataclass(frozen=True)
class Cell:
    """Versions that keep just `kept` of the base's accuracy, judged on `n` inputs."""

    n: int
    accuracy: float
    won: float
    kept: float = ASKED

    def counts(self, versions: int, dice: np.random.Generator) -> np.ndarray:
        """Of each version: inputs that are right in both, became wrong, became right, wrong in both."""
        won = min(self.won, 1 - self.accuracy)
        lost = (1 - self.kept) * self.accuracy + won
        shares = [self.accuracy - lost, lost, won]
        return dice.multinomial(self.n, [*shares, max(0.0, 1 - sum(shares))], size=versions)

    def passed(self, versions: int, dice: np.random.Generator) -> float:
        """Share of the versions that pass, though none keeps more than is asked."""
        both, lost, won, _ = self.counts(versions, dice).T
        return float((kept_z(both, lost, won, self.n, ASKED) >= Z95).mean())


def cells() -> list[Cell]:
    return [Cell(n, accuracy, won) for n in NUMBERS for accuracy, won in KINDS]


def in_force(settings: Gate, versions: int, dice: torch.Generator) -> float:
    """Share of versions that the gate puts in force whose control truly keeps 92 %, judged on 100 inputs."""
    found = 0
    for _ in range(versions):
        before = torch.rand(100, generator=dice) < 0.9
        after = before & (torch.rand(100, generator=dice) < 0.92)
        found += gate.judge(settings, [], ["c"], {"c": before}, {"c": after}).holds
    return found / versions


def failed(targets: int, versions: int, dice: torch.Generator) -> float:
    """Share of versions that fail `target_keep: 1` though every target is as good as the base."""
    settings = Gate(control_keep=None, target_keep=1.0)
    names = [f"t{i}" for i in range(targets)]
    found = 0
    for _ in range(versions):
        base, now = {}, {}
        for name in names:
            same = torch.rand(300, generator=dice) < 0.7
            turned = torch.rand(300, generator=dice)  # as many become right as wrong
            base[name], now[name] = same | (turned < 0.1), same | (turned > 0.9)
        found += gate.judge(settings, names, [], base, now).result == gate.FAIL
    return found / versions


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=200_000, help="simulated versions a cell")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    dice = np.random.default_rng(asked.seed)
    beyond = 0
    print(
        f"share that passes though it keeps exactly {ASKED}; at most {MOST_PASSED} (rows: inputs; columns: accuracy, won)"
    )
    print("      " + "".join(f"{a:.2f},{w:.2f}  " for a, w in KINDS))
    for n in NUMBERS:
        row = [Cell(n, accuracy, won).passed(asked.versions, dice) for accuracy, won in KINDS]
        beyond += sum(share > MOST_PASSED for share in row)
        print(f"{n:5d} " + "".join(f"{share:9.4f}  " for share in row))
    drawn = torch.Generator().manual_seed(asked.seed)
    for name, share, most in (
        ("in force by default, control keeps 92 % of 95 %, n = 100", in_force(Gate(), 4000, drawn), MOST_PASSED),
        ("the same with strict: false", in_force(Gate(strict=False), 4000, drawn), 1.0),
        ("50 equal targets fail target_keep: 1", failed(50, 400, drawn), MOST_FAILED),
    ):
        beyond += share > most
        print(f"{name}: {share:.4f} (at most {most})")
    return int(beyond > 0)


if __name__ == "__main__":
    sys.exit(main())
