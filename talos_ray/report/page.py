"""The report on a version: one page that opens offline, and its numbers as CSV and spreadsheet.

How the page looks is in `templates`, its words in `english` and `japanese`. Here is what it decides, and what has to be
counted or drawn for it; what a version holds the templates show themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from talos_ray.core.metrics import BINS, class_scores, mostly_taken_for
from talos_ray.core.paired import Answers
from talos_ray.report import plots, tables
from talos_ray.report.words import Words, words_of
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import FAIL, OPEN, PASS, GateCheck, TaskScores, Version
from talos_ray.templates import template

Section = dict[str, Any]  # what a section of the page shows, by the names that its template has for it

MOST_NAMED = 12  # tasks in one sentence
SIGNIFICANT = 0.05  # chance by which a gain that is none is taken for one
LEAST_GAIN = 0.01  # of an edit, for a share of it to mean something
RESULTS = {PASS: "result_pass", FAIL: "result_fail", OPEN: "result_open"}


def decision(version: Version, approved: Mapping[str, Any] | None, w: Words) -> tuple[str, str]:
    """'pass', 'hold' or 'open', and the sentence that says why: what the gate says of a version, or who approved it."""
    if version.kind == "base":
        return "pass", w.plain("is_base")
    judged = version.gate
    assert judged is not None  # a version is judged before anybody is told of it
    not_learnt = _not_learnt(version)
    words = w.plain("joint").join(_notes(version, not_learnt, w)) or w.plain("no_target")
    why = w.plain("joint").join(_unmet(check, w) for check in judged.unmet)
    if approved:
        return "pass", w.plain("approved", by=approved["by"], reason=approved["reason"], why=why, words=words)
    if judged.result == PASS:
        # A gate that asks for nothing lets a version through that lost a task. It is no pass that a reader may trust.
        if not_learnt:
            return "open", w.plain("not_all", words=words)
        return "pass", w.plain("pass" if judged.checks else "no_gate", words=words)
    if judged.result == FAIL:
        return "hold", w.plain("hold", why=why, words=words)
    # What cannot be told keeps a version aside, unless the spec says that it is to be trusted meanwhile.
    sentence = w.plain("open", why=why, words=words)
    return ("hold", sentence) if judged.strict else ("open", w.plain("at_risk", words=sentence))


def _not_learnt(version: Version) -> list[str]:
    """Targets on which the version is no better than the base."""
    scores = version.scores
    return [task for task in version.targets if scores[task].merged.value <= scores[task].base.value]


def _notes(version: Version, not_learnt: Sequence[str], w: Words) -> Iterator[str]:
    """What the sentence says beside the gate. What went wrong comes first: a mean hides it."""
    means = version.summary
    if not_learnt:
        yield w.plain("not_learnt", tasks=some([_from_to("from_to", version, task, w) for task in not_learnt], w))
    if means.merged is not None and means.zero_shot is not None:
        change = means.merged - means.zero_shot
        yield w.plain("gain", before=means.zero_shot, after=means.merged, change=change)
    if gains := gain_kept(version):
        least = min(gains, key=gains.__getitem__)
        yield w.plain("gain_kept", task=least, share=gains[least])
    for control, share in means.control_kept.items():
        yield w.plain("control_kept", task=control, kept=share)
    for task in version.forgotten:
        yield _from_to("forgotten", version, task, w)
    if enough := probe_would_do(version):
        yield w.plain("probe_enough", tasks=some(enough, w))


def some(names: Sequence[str], w: Words) -> str:
    """The first of many, and how many more there are: a sentence has to be read."""
    words = list(names[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        words.append(w.plain("and_more", n=len(names) - MOST_NAMED))
    return ", ".join(words)


def _from_to(key: str, version: Version, task: str, w: Words) -> str:
    scores = version.scores[task]
    return w.plain(key, task=task, before=scores.base.value, after=scores.merged.value)


def gain_kept(version: Version) -> dict[str, float]:
    """Target task -> which share of what its single edit gains over the base the merged model keeps; those whose edit
    gains nothing worth a share (a hundredth) are left out."""
    shares = {}
    for task in version.targets:
        scores = version.scores[task]
        if scores.single is None:  # it was not measured alone
            continue
        base = scores.base.value
        gain = scores.single.value - base
        if gain >= LEAST_GAIN:
            shares[task] = (scores.merged.value - base) / gain
    return shares


def probe_would_do(version: Version) -> list[str]:
    """Target tasks on which the merged model is not shown to be better than the base under a linear head of its own
    (McNemar, 5 %)."""
    return [t for t, change in version.probe.items() if change.won <= change.lost or change.p >= SIGNIFICANT]


def _unmet(check: GateCheck, w: Words) -> str:
    """A condition that does not hold, or cannot be told to hold: what was found, and what would tell."""
    what = w.plain(check.kind, task=check.task) if check.kind else check.what
    figures = {"value": check.value, "low": check.low, "high": check.high, "wanted": check.wanted}
    found = w.plain("found", what=what, **figures)
    if check.result != OPEN:
        return found
    if not check.more:
        return w.plain("found_lost", found=found)
    if not check.most:  # there is no end, or an early release did not say it
        return w.plain("found_open_end", found=found, more=check.more)
    return w.plain("found_open", found=found, more=check.more, most=check.most)


def render(
    folder: RunFolder,
    info: Mapping[str, Any],
    version: Version,
    approved: Mapping[str, Any] | None = None,
    robustness: Mapping[str, Any] | None = None,
    *,
    language: str = "en",
    watched: Sequence[Mapping[str, Any]] = (),
    answers: Answers | None = None,
) -> dict[str, bytes]:
    """The report on one version: {"html": the page, "csv": its scores, "impact.csv": how far every tensor changed,
    "xlsx": all tables}. Numbers are the version's, to the digits shown.

    Args:
        watched: `watch` events on it.
        answers: what it answered on test data, where that is known.
    """
    w = words_of(language)
    standing, sentence = decision(version, approved, w)
    number = version.number
    assert number is not None  # it is on storage
    earlier = [folder.load_version(before) for before in folder.versions() if before < number]
    # In the page's order, as its templates name them.
    sections: Section = {
        "scores": _scores(version, w),
        "by_class": _by_class(folder, version, answers),
        "watched": watched,
        "negation_plot": _negation_plot(version, w),
        "choice": _choice(version, w),
        "scope": _scope(folder, version, w),
        "robustness": _robustness(version, robustness),
        "drift_plot": plots.drift([*earlier, version], w.plain) if earlier else None,
        "search": _search(version, w),
        "learned": _learned(version, w),
        "entangled": _entangled(version, w),
        "training_plot": _training_plot(folder, version, w),
        "mask": _mask(folder, info, w),
    }
    page = template("talos_ray.report", "page.html.jinja").render(
        w=w,
        language=language,
        title=w("title", run=folder.store.uri.rstrip("/").rsplit("/", 1)[-1], number=number),
        standing=standing,
        sentence=sentence,
        version=version,
        info=info,
        results=RESULTS,
        bins=BINS,
        **sections,
    )
    return {"html": page.encode(), **_as_tables([*earlier, version], sentence)}


def _as_tables(versions: Sequence[Version], sentence: str) -> dict[str, bytes]:
    """The last version's numbers for programs and spreadsheets, and what it has in common with those before it."""
    version = versions[-1]
    scores = tables.scores(version)
    impact = tables.impact(version)
    sheets = {
        "scores": scores,
        "gate": tables.checks(version),
        "impact": impact,
        "versions": tables.drift(versions),
    }
    return {
        "csv": tables.as_csv(scores),
        "impact.csv": tables.as_csv(impact),
        "xlsx": tables.as_xlsx(sheets, sentence),
    }


# ---------------------------------------------------------------------------------- sections, in the page's order


def _scores(version: Version, w: Words) -> Section:
    shown = (*version.targets, *version.others, *version.controls)
    by_task = {task: version.scores[task] for task in shown}
    plotted = {task: by_task[task] for task in plots.tasks_shown(version) if task in by_task}
    # A column for what no task has would be an empty one.
    measured = {kind for scores in version.scores.values() for kind in scores.measured()}
    return {
        "by_task": by_task,
        "more": [kind for kind in ("probe", "merged_words") if kind in measured],
        "looked_before": any(look > 1 for look in version.looks.values()),
        "plotted": len(plotted),
        "plot": plots.scores(plotted, w.plain),
    }


def _by_class(folder: RunFolder, version: Version, answers: Answers | None) -> Section:
    """Of every task whose answers are known."""
    if answers is None:
        return {}
    _, names = folder.load_heads()
    sections = {}
    for task in version.scores:
        # Answers and class names are recorded apart from scores; where either is missing there is nothing to count.
        if task not in answers.predicted or task not in names:
            continue
        classes = names[task]
        predicted = answers.predicted[task]
        means = class_scores(predicted, answers.labels[task], len(classes), answers.probability.get(task))
        taken_for = [mostly_taken_for(row, place, classes) for place, row in enumerate(means.confusion)]
        sections[task] = {"classes": classes, "means": means, "taken_for": taken_for}
    return sections


def _negation_plot(version: Version, w: Words) -> str | None:
    return None if version.negation is None else plots.negation(version.negation, w.plain)


def _choice(version: Version, w: Words) -> Section:
    if version.choice is None:
        return {}
    # What holds before what does not: a run that let a control task fall may well have the best mean.
    best_first = sorted(version.choice.tried, key=lambda run: (-run.held, -run.merged))
    return {"tried": best_first, "plot": plots.trade_off(best_first, w.plain)}


def _scope(folder: RunFolder, version: Version, w: Words) -> Section:
    tensors = version.impact.tensors
    if not tensors:
        return {}
    imported = {}
    for task, mark in version.deltas.items():
        about = folder.delta_info(task, mark) or {}
        if "imported" in about:
            imported[task] = about
    return {"plot": plots.impact(tensors, w.plain), "imported": imported}


def _robustness(version: Version, found: Mapping[str, Any] | None) -> Section:
    """`found`: task -> kind of corruption -> scores; 'none' is the task's own test data."""
    if not found:
        return {}
    by_task: dict[str, dict[str, TaskScores]] = {}
    for task, kinds in found.items():
        by_task[task] = {name: TaskScores(**scores) for name, scores in kinds.items()}
    targets = [kinds for task, kinds in by_task.items() if task in version.targets]
    retained = {model: _mean_retained(model, targets) for model in ("base", "merged")}
    return {"by_task": by_task, "retained": retained}


def _mean_retained(model: str, tasks: Sequence[Mapping[str, TaskScores]]) -> float:
    """Which share of its accuracy a model keeps on average under a corruption; all of it where there is none."""
    shares = []
    for kinds in tasks:
        clean = max(getattr(kinds["none"], model).value, 1e-9)  # who answers nothing right has nothing to lose
        for name, scores in kinds.items():
            if name != "none":
                shares.append(getattr(scores, model).value / clean)
    return sum(shares) / len(shares) if shares else 1.0


def _search(version: Version, w: Words) -> Section:
    # A search that was given its coefficients has tried none; the arm beside it may have.
    searches = {}
    for name, arm in (("sparse", version), ("dense_arm", version.baseline)):
        if arm is not None and arm.search.candidates:
            searches[w.plain(name)] = arm.search
    if not searches:
        return {}
    candidates = {name: search.candidates for name, search in searches.items()}
    return {"first": next(iter(searches.values())), "plot": plots.candidates(candidates, w.plain)}


def _learned(version: Version, w: Words) -> Section:
    """Where coefficients were learned: a map of them, and how the loss fell."""
    learned = version.search.by_tensor
    if version.learned is None or not learned:
        return {}
    by_tensor = {task: learned[task] for task in plots.tasks_shown(version) if task in learned}
    curves = {w.plain("merged"): version.search.curve}
    return {
        "coefficients": plots.coefficients(by_tensor, w.plain),
        "curve": plots.training_curves(curves, w.plain, w.plain("learning_plot")),
    }


def _entangled(version: Version, w: Words) -> Section:
    xi = version.search.disentanglement
    together = xi.together
    if not together:
        return {}
    worst = max(together, key=together.__getitem__)
    mean = sum(together.values()) / len(together)
    plot = None
    if xi.pairs:  # of many tasks only what all others do together is measured
        plot = plots.heatmap(xi.pairs, xi.tasks, xi.tasks, w.plain("joins"), w.plain("inputs_of"), w.plain("xi_plot"))
    return {"mean": mean, "worst": worst, "most": together[worst], "plot": plot}


def _training_plot(folder: RunFolder, version: Version, w: Words) -> str | None:
    curves = {}
    looks = {}
    shown = plots.tasks_shown(version)
    for task, mark in version.deltas.items():
        if task not in shown:
            continue
        about = folder.delta_info(task, mark) or {}
        curves[task] = about.get("curve") or []
        looks[task] = about.get("validation") or []
    return plots.training_curves(curves, w.plain, looks=looks) if any(curves.values()) else None


def _mask(folder: RunFolder, info: Mapping[str, Any], w: Words) -> Section:
    mask = folder.load_mask(info["base"])
    if mask is None:
        return {}
    about: Mapping[str, Any] = mask.info
    stability = about.get("stability")
    return {
        "k": mask.k,
        "total": mask.layout.total,
        "strategy": about.get("strategy"),
        "plot": plots.mask_by_tensor(mask.density(), w.plain),
        "stability_plot": plots.stability(stability, w.plain) if stability else None,
        "overlap": about.get("overlap"),
    }
