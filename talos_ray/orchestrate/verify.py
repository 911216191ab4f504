"""Choose the coefficients on validation data, then read the test data once: the numbers of a version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import ray
import torch

from talos_ray.config import Merge
from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.disentangle import disentanglement, nonlinearity
from talos_ray.core.layout import fingerprint, key_of
from talos_ray.core.mask import Mask
from talos_ray.core.merging import SUBSPACES, merged
from talos_ray.core.metrics import MergeObjective, absolute_accuracy, accuracy, normalized_accuracy
from talos_ray.core.paired import Answers, bootstrap
from talos_ray.models import base_tensors, load_model
from talos_ray.orchestrate.cluster import options
from talos_ray.orchestrate.desk import open_desk
from talos_ray.orchestrate.evaluation import SAMPLE, Candidate, Evaluator, Found, Ledger, Problem, evaluate, sample
from talos_ray.orchestrate.proposals import generations, probes, surrogate_of
from talos_ray.orchestrate.search import Generations, run
from talos_ray.orchestrate.worker import Arm


@dataclass(frozen=True)
class Way:
    """One arm under one merge method: the rows that are added up, and a reference of them."""

    arm: str
    how: Merge
    mask: Mask
    rows: Mapping[str, Delta]
    ref: object


class Judge:
    """Evaluates candidates of every arm on Ray, and writes down what they score.

    `others`: tasks of the run that are no part of this version, and are scored all the same. `stage`: what a search shows
    its progress under; only one of its own is begun and ended here.
    """

    def __init__(
        self, prepared, shared_ref, folder, scratch: str, progress, slots: int, watch, others: Sequence[str] = (), stage: str = "search",
    ) -> None:  # fmt: skip
        self.p, self.shared_ref, self.folder, self.others = prepared, shared_ref, folder, tuple(others)
        self.scratch, self.progress, self.slots, self.watch, self.stage = scratch, progress, slots, watch, stage
        self.evaluate = evaluate.options(**options(prepared.spec.cluster))
        self.single: dict[str, object] = {}  # arm -> reference of its deltas as trained
        self.ways: dict[str, Way] = {}  # name of a search -> what it searches

    def share(self, arms, deltas: Mapping[str, Mapping[str, Delta]], methods: Sequence[Merge]) -> None:
        """Every arm's task vectors, as trained and as each merge method leaves them (dense ones: as trained), put into the
        object store by the driver, who outlives the teams that made them."""
        for plan in arms:
            self.single[plan.name] = self._put(plan.mask, plan.name, deltas[plan.name])
            tried = methods if plan is arms[0] else (Merge(method="linear"),)
            for how in tried:
                mask, rows = merged(deltas[plan.name], plan.mask, **how.model_dump())
                name = f"{plan.name} {how.method}" if len(tried) > 1 else plan.name
                plain = how.method == "linear" and how.groups is None
                ref = self.single[plan.name] if plain else self._put(mask, name, rows)
                self.ways[name] = Way(plan.name, how, mask, rows, ref)

    @staticmethod
    def _put(mask: Mask, name: str, deltas: Mapping[str, Delta]):
        return ray.put(Arm.of(name, mask.bits, deltas))

    def evaluator(self, ref, deltas: Mapping[str, Delta]) -> Evaluator:
        """Of the candidates of one set of task vectors."""
        p = self.p
        held_out = {
            n: [d.validation.fingerprint(), fingerprint({"head": torch.from_numpy(p.heads[n])})]
            for n, d in p.data.items()
        }
        looks_at = {n: sample(p.spec, n, len(d.validation)).tolist() for n, d in p.data.items()}
        ledger = Ledger(self.folder.store.uri, p.base, key_of([held_out, looks_at]))
        return Evaluator((self.shared_ref, ref), {t: d.fingerprint for t, d in deltas.items()}, ledger, p.spec)

    def wait(self, refs: list, split: str, stage: str) -> list:
        """The results of Ray tasks, with progress while they come."""
        waiting = list(refs)
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=1)
            self.progress.update(
                stage, 1 - len(waiting) / len(refs), f"{split} scores: {len(refs) - len(waiting)} of {len(refs)}"
            )
        return ray.get(refs)

    def search(self, arms, deltas: Mapping[str, Mapping[str, Delta]]) -> dict[str, dict]:
        """The best coefficients of every arm by validation, with every candidate's objective."""
        p = self.p
        if self.stage == "search":
            self.progress.begin("search", "single-task scores")
        everything, desk = (*p.targets, *p.controls), open_desk()
        self.share(arms, deltas, p.spec.search.merge.tried)
        alone = [({t: 1.0}, (t,)) for t in p.targets] + [({}, tuple(p.controls))]

        singles = {a.name: self.evaluator(self.single[a.name], deltas[a.name]) for a in arms}
        evaluators = {name: self.evaluator(way.ref, way.rows) for name, way in self.ways.items()}
        edits = {name: [e.submit(c, tasks) for c, tasks in alone] for name, e in singles.items()}
        measured = {
            name: [e.submit(a, everything, SAMPLE) for a in probes(p.spec, list(e.deltas))]
            for name, e in evaluators.items()
        }
        self.wait(
            [ref for refs in (*edits.values(), *measured.values()) for units in refs for ref in units],
            "validation",
            self.stage,
        )
        labels = {n: d.validation.labels for n, d in p.data.items()}
        parts = min(p.spec.search.parts, *map(len, labels.values()))
        objectives = {}
        for name, refs in edits.items():
            counts = [singles[name].counts(units) for units in refs]
            scores = {t: right / n for c in counts for t, (right, n) in c.items()}
            objectives[name] = MergeObjective(
                {t: scores[t] for t in p.targets}, {t: scores[t] for t in p.controls}, p.spec.search.control_keep
            )
        searches = {}
        for name, way in self.ways.items():
            problem = Problem(evaluators[name], objectives[way.arm], parts)
            searches[name] = (problem, generations(problem, labels))
        found = self.run(searches, p.spec.search.most * len(searches), desk)
        if self.stage == "search":
            self.progress.end("search", "; ".join(f"{a}: {_told(found[a])}" for a in searches))
        chosen = {
            a.name: self._chosen({n: found[n] for n, w in self.ways.items() if w.arm == a.name}, objectives[a.name])
            for a in arms
        }
        for mine in chosen.values():
            mine |= self._entangled(searches[mine["way"]][0], labels, found[mine["way"]].candidates[0])
        return chosen

    def _entangled(self, problem: Problem, labels: Mapping[str, torch.Tensor], best: Candidate) -> dict:
        """How far the edits disturb each other, where the search has cached what tells it."""
        if best.predicted is None or problem.targets != tuple(sorted(problem.objective.single)):
            return {}  # not known, or not by task
        surrogate, targets = surrogate_of(problem, labels), problem.targets
        logits = problem.evaluator.logits(best.coefficients, problem.tasks)
        a = torch.tensor([best.coefficients[t] for t in targets])
        return {
            "disentanglement": disentanglement(surrogate, targets, best.coefficients),
            "nonlinearity": nonlinearity(surrogate, a, logits),
        }

    def run(self, searches: Mapping[str, tuple[Problem, Generations]], most: int, desk) -> dict[str, Found]:
        """What each search finds, with progress; `most` candidates in all, handed out by a `desk`."""
        seen: dict[str, float] = {}
        n = 0

        def on_candidate(arm: str, candidate: Candidate) -> None:
            nonlocal n
            n += 1
            if candidate.whole:
                seen[arm] = max(candidate.objective, seen.get(arm, candidate.objective))
                self.watch.candidate(arm, n, candidate.objective, seen[arm])
            best = ", ".join(f"{a} {v:.4f}" for a, v in seen.items())
            self.progress.update(self.stage, n / most, f"candidate {n}, best {best}")

        found, self.overhead = run(searches, desk, self.slots, self.scratch, on_candidate)
        return found

    def _chosen(self, found: Mapping[str, Found], objective: MergeObjective) -> dict:
        """The best candidate of one arm under any merge method."""
        name = min(found, key=lambda n: found[n].candidates[0].rank)
        best = found[name].candidates[0]
        return {
            "way": name, "coefficients": best.coefficients, "objective": best.objective, "validation": best.scores,
            "single_validation": dict(objective.single), "control_validation": dict(objective.control),
            "candidates": [
                {"objective": c.objective, "predicted": c.predicted, "coefficients": c.coefficients, "whole": c.whole, "number": c.number} for c in found[name].candidates
            ],
            "methods": {self.ways[n].how.method: f.candidates[0].objective for n, f in found.items()},
            "evaluated": sum(len(f.candidates) for f in found.values()), "looks": {self.ways[n].how.method: f.looks for n, f in found.items()},
            "correlation": found[name].correlation, "fell_back": found[name].fell_back, "control_held": best.objective >= 0,
        }  # fmt: skip

    def verify(
        self, arms, deltas: Mapping[str, Mapping[str, Delta]], chosen: Mapping[str, dict]
    ) -> tuple[dict, Answers, Answers]:
        """The content of a version: test scores of base, single edits and merged model of every arm; and what the base and the
        merged model answered."""
        p = self.p
        self.progress.begin("verify", "test scores")
        everything = [*p.targets, *self.others, *p.controls]
        requests = [(self.single[arms[0].name], {}, everything)]
        for plan in arms:
            requests.append((self.ways[chosen[plan.name]["way"]].ref, chosen[plan.name]["coefficients"], everything))
            requests += [(self.single[plan.name], {t: 1.0}, [t]) for t in p.targets]
        refs = [self.evaluate.remote(self.shared_ref, arm, a, tasks) for arm, a, tasks in requests]
        marks = {t: p.data[t].test.fingerprint() for t in everything}
        answers = iter([self.answers(found, marks) for found in self.wait(refs, "test", "verify")])
        base = next(answers)
        result, merged_answers = {}, {}
        for plan in arms:
            together = merged_answers[plan.name] = next(answers)
            single = {t: next(answers).counts(t) for t in p.targets}
            result[plan.name] = self._arm_result(plan, deltas[plan.name], chosen[plan.name], base, together, single)
        sparse, way = result[arms[0].name], self.ways[chosen[arms[0].name]["way"]]
        now = merged_answers[arms[0].name]
        model, tensors = self._composed(way.mask, way.rows, sparse["coefficients"])
        if way.how.method in SUBSPACES and way.rows:  # singular vectors differ in the last bits from machine to machine
            sparse["rows"], size = self.folder.save_merged(way.mask, way.rows)
            sparse["cost"] |= {"merged_bytes": size, "weights_changed": way.mask.k}
        if p.targets:
            rights = [[a.right(t) for t in p.targets] for a in (base, now)]
            gains = [b.int() - a.int() for a, b in zip(*rights, strict=True)]
            parts = zip(("zero_shot", "merged", "gain"), (*rights, gains), strict=True)
            sparse["summary"]["intervals"] = {name: bootstrap(found) for name, found in parts}
        version = {
            "kind": "addition",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "base": p.base,
            "mask": arms[0].mask.fingerprint,
            "deltas": {t: d.fingerprint for t, d in sorted(deltas[arms[0].name].items())},
            "model": model,
            "merge": way.how.model_dump(),
            "targets": p.targets,
            "others": list(self.others),
            "controls": p.controls,
            **sparse,
            "impact": {
                "tensors": tensors,
                "flipped": {t: float((base.predicted[t] != now.predicted[t]).float().mean()) for t in everything},
            },
            "baseline": result.get("dense"),
        }
        means = version["summary"]
        self.progress.end(
            "verify",
            f"targets {means['zero_shot']:.3f} -> {means['merged']:.3f} ({means['merged'] - means['zero_shot']:+.3f}) on test data"
            if p.targets
            else "no target task is left",
        )
        return version, base, now

    def answers(self, found: Mapping[str, np.ndarray], marks: Mapping[str, str]) -> Answers:
        """What `evaluate` found, with the labels; `marks`: task -> fingerprint of its test data."""
        return Answers(
            {t: torch.from_numpy(a.copy()) for t, a in found.items()},
            {t: self.p.data[t].test.labels for t in found},
            {t: marks[t] for t in found if t in marks},
        )

    def _arm_result(self, plan, deltas, chosen: dict, base, merged, single) -> dict:
        p = self.p
        scores = {}
        for t in (*p.targets, *self.others, *p.controls):
            scores[t] = {"base": accuracy(*base.counts(t)).as_dict(), "merged": accuracy(*merged.counts(t)).as_dict()}
            if t in single:
                scores[t]["single"] = accuracy(*single[t]).as_dict()
        values = {
            kind: {t: s[kind]["value"] for t, s in scores.items() if t in p.targets}
            for kind in ("base", "merged", "single")
        }
        files = plan.folder.store
        size = sum(len(files.read(f"deltas/{t}.safetensors")) for t in p.targets)
        return {
            "coefficients": chosen["coefficients"],
            "scores": scores,
            "summary": {
                **(_means(values) if p.targets else {}),
                "control_kept": {
                    c: scores[c]["merged"]["value"] / max(scores[c]["base"]["value"], 1e-9) for c in p.controls
                },
            },
            **(
                {"search": {k: v for k, v in chosen.items() if k not in ("coefficients", "way")}}
                if "candidates" in chosen
                else {}
            ),
            "cost": {
                "train_seconds": round(sum(float(d.info["seconds"]) for d in deltas.values()), 2),
                "state_bytes": max((int(d.info["state_bytes"]) for d in deltas.values()), default=0),
                "delta_bytes": size,
                "weights_changed": plan.mask.k,
            },
        }

    def _composed(
        self, mask, deltas: Mapping[str, Delta], coefficients: Mapping[str, float]
    ) -> tuple[str, dict[str, dict]]:
        """Fingerprint of the composed model, and how many weights of each tensor changed and how far (norm of the change over
        norm of the base). Proves on the way that rolling back gives the base's own bytes."""
        family = load_model(self.p.spec.model)
        composer = Composer(family.module, mask, list(deltas.values()), self.p.base)
        composer.compose(coefficients)
        now = base_tensors(family)
        composed, tensors = fingerprint(now), {}
        for name in self.p.layout.names:
            if changed := int((now[name] != self.p.tensors[name]).sum()):
                before = self.p.tensors[name].float()
                far = float((now[name].float() - before).norm() / before.norm().clamp(min=1e-30))
                tensors[name] = {"changed": changed, "weights": before.numel(), "relative": far}
        composer.rollback()
        if fingerprint(base_tensors(family)) != self.p.base:
            raise AssertionError(
                "rolling back did not restore the base's fingerprint: this is a bug in talos_ray; nothing was changed"
            )
        return composed, tensors


def _means(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Over the targets."""
    return {
        "zero_shot": absolute_accuracy(values["base"]),
        "single": absolute_accuracy(values["single"]),
        "merged": absolute_accuracy(values["merged"]),
        "normalized": normalized_accuracy(values["merged"], values["single"]),
    }


def _told(found: Found) -> str:
    """One arm's search in a line."""
    stopped = sum(not c.whole for c in found.candidates)
    note = f"{len(found.candidates)} candidates" + (f" ({stopped} stopped early)" if stopped else "")
    note += f", best normalized validation accuracy {found.candidates[0].objective:.4f}"
    if found.correlation is not None:
        note += f", the surrogate's ranks agree with the truth to {found.correlation:.2f}"
        note += f", it looked again {len(found.looks)} time(s)" if found.looks else ""
    return note + (", Optuna took over" if found.fell_back else "")
