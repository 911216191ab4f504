"""The report on a version: one page that opens offline, and its numbers as CSV and spreadsheet. The words are in
`english` and `japanese`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from talos_ray.core.metrics import BINS, class_scores, mostly_taken_for
from talos_ray.core.paired import Answers
from talos_ray.errors import SpecError, nearest
from talos_ray.report import english, japanese, plots, tables
from talos_ray.report.words import Words
from talos_ray.shown import Html, escaped, filled, joined
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.version import FAIL, OPEN, PASS, ArmResult, Cost, GateCheck, Score, TaskScores, Version

LANGUAGES = {"en": english.TEXTS, "ja": japanese.TEXTS}
SIGNIFICANT = 0.05  # chance by which a gain that is none is taken for one
LEAST_GAIN = 0.01  # of an edit, for a share of it to mean something
RESULTS = {PASS: "result_pass", FAIL: "result_fail", OPEN: "result_open"}

INTERVAL = "{value:.3f} <small>{low:.3f}-{high:.3f}</small>"

# The page needs nothing but what is in it. Should something of others get into it all the same, a browser will not run
# it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

CSS = """
:root{color-scheme:light dark;--ink:#1d2530;--dim:#5a6675;--ground:#fff;--line:#d5dbe3;--good:#1c7c43;--bad:#b3261e}
@media(prefers-color-scheme:dark){
:root{--ink:#e6eaf0;--dim:#a0abba;--ground:#14181f;--line:#343c48;--good:#5fd38d;--bad:#ff8a80}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:66rem;margin:0 auto;
padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-top:1px solid var(--line);padding-top:1rem}
p.how{color:var(--dim)}.decision{font-size:1.15rem;border-left:.3rem solid;padding:.5rem 1rem;font-weight:600}
.pass{border-color:var(--good);color:var(--good)}
.hold{border-color:var(--bad);color:var(--bad)}
.open{border-color:var(--dim)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
tfoot td{font-weight:600}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
code{overflow-wrap:anywhere}svg{width:100%;height:auto}small{color:var(--dim)}
@media(max-width:40rem){
th,td{padding:.25rem .3rem;font-size:.85rem}
td small{display:block}
.plot{overflow-x:auto}
.plot svg{min-width:42rem}}
@media print{body{max-width:none}h2{break-after:avoid}svg{break-inside:avoid}}
"""


def words_of(language: str) -> Words:
    """Raises SpecError if the report does not speak it."""
    if language not in LANGUAGES:
        raise SpecError(
            f"language {language!r} is not known{nearest(language, LANGUAGES)}; wanted one of: {', '.join(LANGUAGES)}"
        )
    return Words(LANGUAGES[language])


def decision(version: Version, approved: Mapping[str, Any] | None, w: Words) -> tuple[str, str]:
    """'pass', 'hold' or 'open', and the sentence that says why: what the gate says of a version, or who approved it."""
    if version.kind == "base":
        return "pass", w.plain("is_base")
    notes = []
    means = version.summary
    scores = version.scores
    # What went wrong is said first: a mean hides it.
    flat = [t for t in version.targets if scores[t].merged.value <= scores[t].base.value]
    if flat:
        found = (w.plain("from_to", task=t, before=scores[t].base.value, after=scores[t].merged.value) for t in flat)
        notes.append(w.plain("not_learnt", tasks=", ".join(found)))
    if means.merged is not None and means.zero_shot is not None:
        change = means.merged - means.zero_shot
        notes.append(w.plain("gain", before=means.zero_shot, after=means.merged, change=change))
    if gains := gain_kept(version):
        least = min(gains, key=gains.__getitem__)
        notes.append(w.plain("gain_kept", task=least, share=gains[least]))
    notes += [w.plain("control_kept", task=c, kept=k) for c, k in means.control_kept.items()]
    for task in version.forgotten:
        s = scores[task]
        notes.append(w.plain("forgotten", task=task, before=s.base.value, after=s.merged.value))
    if enough := probe_would_do(version):
        notes.append(w.plain("probe_enough", tasks=", ".join(enough)))
    words = w.plain("joint").join(notes) or w.plain("no_target")
    judged = version.gate
    assert judged is not None  # a version is judged before anybody is told of it
    why = w.plain("joint").join(_unmet(c, w) for c in judged.unmet)
    if approved:
        return "pass", w.plain("approved", by=approved["by"], reason=approved["reason"], why=why, words=words)
    if judged.result == PASS:
        if flat:
            return "open", w.plain("not_all", words=words)
        return "pass", w.plain("pass" if judged.checks else "no_gate", words=words)
    if judged.result == FAIL:
        return "hold", w.plain("hold", why=why, words=words)
    told = w.plain("open", why=why, words=words)
    return ("hold", told) if judged.strict else ("open", w.plain("at_risk", words=told))


def gain_kept(version: Version) -> dict[str, float]:
    """Target task -> which share of what its single edit gains over the base the merged model keeps; those whose edit
    gains nothing worth a share (a hundredth) are left out."""
    found = {}
    for task in version.targets:
        scores = version.scores[task]
        if scores.single is None:
            continue
        base = scores.base.value
        gain = scores.single.value - base
        if gain >= LEAST_GAIN:
            found[task] = (scores.merged.value - base) / gain
    return found


def probe_would_do(version: Version) -> list[str]:
    """Target tasks on which the merged model is not shown to be better than the base under a linear head of its own
    (McNemar, 5 %)."""
    return [t for t, c in version.probe.items() if c.won <= c.lost or c.p >= SIGNIFICANT]


def _condition(check: GateCheck, w: Words) -> str:
    return w.plain(check.kind, task=check.task) if check.kind else check.what


def _unmet(check: GateCheck, w: Words) -> str:
    what = _condition(check, w)
    found = w.plain("found", what=what, value=check.value, low=check.low, high=check.high, wanted=check.wanted)
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
    own_number = version.number
    assert own_number is not None  # it is on storage
    name = folder.store.uri.rstrip("/").rsplit("/", 1)[-1]
    title = w("title", run=name, number=version.number)
    so_far = [*(folder.load_version(n) for n in folder.versions() if n < own_number), version]
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="decision {standing}">{escaped(sentence)}</p>',
        f"<p>{_next(standing, version, w)}</p>",
        *_scores(version, w),
        *_by_class(folder, version, answers, w),
        *_gate(version, w),
        *_watched(watched, w),
        *_negation(version, w),
        *_comparison(version, w),
        *_choice(version, w),
        *_scope(folder, version, w),
        *_robustness(version, robustness, w),
        *_drift(so_far, w),
        *_how_it_was_made(folder, version, info, w),
    ]
    page = (
        f"<!doctype html><html lang={language}><head><meta charset=utf-8><meta http-equiv=Content-Security-Policy "
        f'content="{POLICY}"><meta name=viewport content="width=device-width,initial-scale=1"><link rel=icon '
        f'href="data:,"><title>{title}</title><style>{CSS}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    sheets = {
        "scores": tables.scores(version),
        "gate": tables.checks(version),
        "impact": tables.impact(version),
        "versions": tables.drift(so_far),
    }
    return {
        "html": page.encode(),
        "csv": tables.as_csv(sheets["scores"]),
        "impact.csv": tables.as_csv(sheets["impact"]),
        "xlsx": tables.as_xlsx(sheets, sentence),
    }


# ---------------------------------------------------------------------------------- pieces


def _interval(found: Score | GateCheck | None) -> Html:
    return Html("") if found is None else filled(INTERVAL, value=found.value, low=found.low, high=found.high)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], foot: Sequence[str] = ()) -> str:
    """Whatever is no HTML yet is escaped here."""
    cells = "".join(f"<th scope=col>{escaped(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{escaped(c)}</td>" for c in row) + "</tr>" for row in rows)
    last = f"<tfoot><tr>{''.join(f'<td>{escaped(c)}</td>' for c in foot)}</tr></tfoot>" if foot else ""
    return f"<div class=wide tabindex=0><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody>{last}</table></div>"


def _how(text: str) -> str:
    return f"<p class=how>{escaped(text)}</p>"


def _plot(svg: str) -> str:
    return f"<div class=plot>{svg}</div>"


def _kind(version: Version, task: str, w: Words) -> str:
    kind = version.kind_of(task)
    return w("forgotten_kind" if kind == "forgotten" else kind)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


# ---------------------------------------------------------------------------------- sections, in the page's order


def _next(standing: str, version: Version, w: Words) -> str:
    """What the reader can do now."""
    if version.kind == "base":
        return w("next_base")
    number = version.number or 0
    undo = w("undo", number=max(0, number - 1))
    look = w("look", number=number)
    return w(f"next_{standing}", number=number, look=look, undo=undo)


def _scores(version: Version, w: Words) -> list[str]:
    scores = version.scores
    shown = (*version.targets, *version.others, *version.controls)
    more = [k for k in ("probe", "merged_words") if any(k in s.measured() for s in scores.values())]
    looks = version.looks
    rows = []
    for task in shown:
        s = scores[task]
        change = s.merged.value - s.base.value
        rows.append(
            [
                task,
                _kind(version, task, w),
                _interval(s.base),
                _looked(s.merged, looks.get(task, 1), w),
                f"{change:+.3f}",
                _interval(s.single),
                *(_interval(getattr(s, k)) for k in more),
                version.coefficient_of(task),
                str(s.base.n),
            ]
        )
    head = [w(k) for k in ("task", "kind", "base", "merged", "change", "single", *more, "coefficient")]
    return [
        f"<h2>{w('scores')}</h2>",
        _how(w("scores_how")),
        *([_how(w("looks_how"))] if any(n > 1 for n in looks.values()) else []),
        _table([*head, "n"], rows, _means(version, more, w)),
        _plot(plots.scores({t: scores[t] for t in shown}, w.plain)),
    ]


def _by_class(folder: RunFolder, version: Version, answers: Answers | None, w: Words) -> list[str]:
    """What stands behind each task's accuracy, folded away: it is looked up rather than read."""
    if answers is None:
        return []
    names = folder.load_heads()[1]
    parts = []
    for task in [t for t in version.scores if t in answers.predicted and t in names]:
        classes = names[task]
        pair = (answers.predicted[task], answers.labels[task])
        found = class_scores(*pair, len(classes), answers.probability.get(task))
        told = w("by_class_means", balanced=found.balanced_accuracy, f1=found.macro_f1)
        if found.calibration_error is not None:
            told = joined(" ", [told, w("by_class_calibration", error=found.calibration_error, bins=BINS)])
        head = [w(k) for k in ("class", "inputs", "recall", "precision", "taken_for")]
        rows = [
            [name, str(sum(row)), _percent(recall), _percent(precision), mostly_taken_for(row, place, classes)]
            for place, (name, row, recall, precision) in enumerate(
                zip(classes, found.confusion, found.recall, found.precision, strict=True)
            )
        ]
        parts.append(f"<details><summary>{escaped(task)}</summary>{_how(told)}{_table(head, rows)}</details>")
    return [f"<h3>{w('by_class')}</h3>", _how(w("by_class_how")), *parts] if parts else []


def _looked(score: Score, look: int, w: Words) -> Html:
    """A score with its interval, and with the number of the look at its test inputs from the second one on."""
    if look < 2:
        return _interval(score)
    return filled("{score} <small>{look}</small>", score=_interval(score), look=w("looked", number=look))


def _means(version: Version, more: Sequence[str], w: Words) -> list[str]:
    """The mean over the targets, with its intervals by bootstrap."""
    means = version.summary
    if not means.intervals:
        return []

    zero_shot = means.zero_shot
    merged = means.merged
    assert zero_shot is not None and merged is not None  # they have intervals

    def told(name: str, value: float, sign: str = "") -> str:
        low, high = means.intervals[name]
        return Html(f"{value:{sign}.3f} <small>{low:.3f}-{high:.3f}</small>")

    return [
        w("mean_targets"),
        "",
        told("zero_shot", zero_shot),
        told("merged", merged),
        told("gain", merged - zero_shot, "+"),
        *("" if (mean := means.mean(k)) is None else f"{mean:.3f}" for k in ("single", *more)),
        "",
        "",
    ]


def _gate(version: Version, w: Words) -> list[str]:
    if not version.checks:
        return []
    rows = []
    for c in version.checks:
        told = w(RESULTS[c.result])
        if c.more and c.most:
            told = w("more_needed", result=told, more=c.more, most=c.most)
        elif c.more:
            told = w("more_needed_end", result=told, more=c.more)
        rows.append([_condition(c, w), f"{c.wanted:.3f}", _interval(c), str(c.n or ""), told])
    head = [w("condition"), w("wanted"), w("found_head"), "n", w("result")]
    return [f"<h2>{w('gate')}</h2>", _how(w("gate_how", together=2)), _table(head, rows)]


def _watched(events: Sequence[Mapping[str, Any]], w: Words) -> list[str]:
    if not events:
        return []
    rows = []
    for e in events:
        base = Score(**e["scores"]["base"])
        now = Score(**e["scores"]["now"])
        when = e["time"][:16].replace("T", " ")
        rows.append([e["data"], e["task"], when, _interval(base), _interval(now), str(now.n), w(RESULTS[e["gate"]])])
    head = [w(k) for k in ("data", "task", "when", "base", "merged")]
    return [f"<h2>{w('watched')}</h2>", _how(w("watched_how")), _table([*head, "n", w("gate")], rows)]


def _negation(version: Version, w: Words) -> list[str]:
    told = version.negation
    if told is None:
        return []
    beyond = told.beyond
    models = ("base", "before", "now")
    figures = {f"probe_{m}": beyond[m].probe.value for m in models}
    figures |= {f"again_{m}": beyond[m].retrained.value for m in models}
    counts = zip(told.classes, beyond["now"].labels, *(beyond[m].predicted for m in models), strict=True)
    return [
        f"<h2>{w('negation', task=told.task)}</h2>",
        _how(w("negation_how", keep=told.keep)),
        _plot(plots.negation(told, w.plain)),
        _how(w("beyond_how", steps=told.retrained_steps, **figures)),
        _table(
            [w(k) for k in ("class", "inputs", "predicted_base", "before", "now")],
            [[c, *map(str, n)] for c, *n in counts],
        ),
    ]


def _comparison(version: Version, w: Words) -> list[str]:
    if version.baseline is None:
        return []
    arms: tuple[ArmResult, ArmResult] = (version, version.baseline)

    def row(word: str, told: Callable[[ArmResult], str]) -> list[str]:
        return [word, *map(told, arms)]

    rows = [
        row(w("zero_shot"), lambda arm: f"{arm.summary.zero_shot:.3f}"),
        row(w("single_task"), lambda arm: f"{arm.summary.single:.3f}"),
        row(w("merged"), lambda arm: f"{arm.summary.merged:.3f}"),
        row(w("normalized"), lambda arm: f"{arm.summary.normalized:.3f}"),
    ]
    for control in version.summary.control_kept:
        kept = [f"{arm.summary.control_kept[control]:.1%}" for arm in arms]
        rows.append([w("control_row", task=control), *kept])
    rows += [
        row(w("training_time"), lambda arm: f"{_cost(arm).train_seconds:.1f} s"),
        row(w("stored"), lambda arm: f"{_cost(arm).delta_bytes / 1e6:.2f} MB"),
        row(w("state"), lambda arm: f"{_cost(arm).state_bytes / 1e6:.2f} MB"),
        row(w("may_change"), lambda arm: f"{_cost(arm).weights_changed:,}"),
    ]
    head = [w("mean_targets"), w("sparse_arm"), w("dense_arm")]
    return [f"<h2>{w('dense')}</h2>", _how(w("dense_how")), _table(head, rows)]


def _choice(version: Version, w: Words) -> list[str]:
    choice = version.choice
    if choice is None:
        return []
    tried = sorted(choice.tried, key=lambda r: (-r.held, -r.merged))
    rows = []
    for r in tried:
        s = r.setting
        rows.append(
            [
                f"{s.strategy}, {s.granularity}",
                f"{s.keep:.0%}",
                f"{s.layers:.0%}",
                filled("&times; {lr:g}", lr=s.lr),
                f"{r.work:.0%}",
                f"{r.single:.3f}",
                filled("{merged:.3f} &plusmn; {error:.3f}", merged=r.merged, error=r.error),
                _percent(r.control),
                _percent(r.disentanglement),
                w("yes" if r.held else "no"),
            ]
        )
    how = w(
        "choice_how",
        share=tried[0].share,
        tolerance=choice.asked["auto"]["tolerance"],
        chosen=w("setting", **dict(choice.chosen)),
        seconds=choice.seconds,
    )
    head = [
        w(k) for k in ("may_change", "share", "layers", "learning_rate", "step_work", "single", "merged", "kept_head")
    ]
    return [
        f"<h2>{w('choice')}</h2>",
        _how(how),
        _table([*head, Html("&xi;"), w("holds")], rows),
        _how(w("trade_off_how")),
        _plot(plots.trade_off(tried, w.plain)),
    ]


def _scope(folder: RunFolder, version: Version, w: Words) -> list[str]:
    impact = version.impact
    if not impact.tensors:
        return []
    flipped = [[t, _kind(version, t, w), _percent(share)] for t, share in impact.flipped.items()]
    parts = [
        f"<h2>{w('impact')}</h2>",
        _how(w("impact_how", changed=impact.changed, tensors=len(impact.tensors))),
        _plot(plots.impact(impact.tensors, w.plain)),
        _how(w("flipped_how")),
        _table([w("task"), w("kind"), w("flipped")], flipped),
    ]
    infos = {t: folder.delta_info(t, mark) or {} for t, mark in version.deltas.items()}
    if imported := {t: i for t, i in infos.items() if "imported" in i}:
        rows = [[t, i["imported"], _percent(i["lost"])] for t, i in imported.items()]
        parts += [_how(w("imported_how")), _table([w("task"), w("checkpoint"), w("imported")], rows)]
    return parts


def _robustness(version: Version, found: Mapping[str, Any] | None, w: Words) -> list[str]:
    if not found:
        return []
    scores = {task: {name: TaskScores(**s) for name, s in kinds.items()} for task, kinds in found.items()}
    rows = []
    for task, kinds in scores.items():
        for name, s in kinds.items():
            change = f"{s.merged.value - s.base.value:+.3f}"
            rows.append([task, _kind(version, task, w), name, _interval(s.base), _interval(s.merged), change])
    kept = {}
    for model in ("base", "merged"):
        shares = [
            getattr(s, model).value / max(getattr(kinds["none"], model).value, 1e-9)
            for task, kinds in scores.items()
            if task in version.targets
            for name, s in kinds.items()
            if name != "none"
        ]
        kept[model] = sum(shares) / len(shares) if shares else 1.0
    head = [w(k) for k in ("task", "kind", "test_data", "base", "merged", "change")]
    return [f"<h2>{w('robustness')}</h2>", _how(w("robustness_how", **kept)), _table(head, rows)]


def _drift(versions: Sequence[Version], w: Words) -> list[str]:
    if len(versions) < 2:
        return []
    return [f"<h2>{w('drift')}</h2>", _how(w("drift_how")), _plot(plots.drift(versions, w.plain))]


def _how_it_was_made(folder: RunFolder, version: Version, info: Mapping[str, Any], w: Words) -> list[str]:
    curves = {t: (folder.delta_info(t, mark) or {}).get("curve") or [] for t, mark in version.deltas.items()}
    parts = [*_search(version, w), *_learned(version, w), *_entangled(version, w)]
    if any(curves.values()):
        parts += [f"<h2>{w('training')}</h2>", _how(w("training_how")), _plot(plots.training_curves(curves, w.plain))]
    parts += [*_mask(folder, info, w), *_took(version, w)]
    facts = [
        ("base", info["base"]),
        ("mask", version.mask),
        ("model", version.model),
        ("made", version.created),
    ]
    rows = [[w(k), v] for k, v in facts] + [[k, v] for k, v in info["software"].items()]
    return [
        *parts,
        f"<h2>{w('facts')}</h2>",
        _table([w("what"), w("value")], [[k, filled("<code>{value}</code>", value=str(v))] for k, v in rows]),
    ]


def _search(version: Version, w: Words) -> list[str]:
    pairs = (("sparse", version), ("dense_arm", version.baseline))
    arms = {w.plain(name): arm.search for name, arm in pairs if arm is not None and arm.search.candidates}
    if not arms:
        return []
    found = next(iter(arms.values()))
    notes = [w("tried", n=len(found.candidates))]
    if len(found.methods) > 1:
        notes.append(w("methods", methods=", ".join(f"{m} {o:.4f}" for m, o in found.methods.items())))
    if len(found.granularities) > 1:
        notes.append(w("reached", reached=", ".join(f"{g} {o:.4f}" for g, o in found.granularities.items())))
    return [
        f"<h2>{w('search')}</h2>",
        _how(w("search_how", words=joined(" ", notes))),
        _plot(plots.candidates({name: a.candidates for name, a in arms.items()}, w.plain)),
    ]


def _learned(version: Version, w: Words) -> list[str]:
    """What was learned, where coefficients were: a map of them, and how the loss fell."""
    learned = version.learned
    found = version.search
    rows = found.by_tensor
    if learned is None or not rows:
        return []
    how = w(
        "learned_how",
        count=learned.count * len(rows),
        granularity=w(f"by_{learned.granularity}"),
        teacher=w(f"teacher_{found.teacher}"),
        pressure=found.pressure,
        heads=", ".join(learned.heads) or w("none"),
    )
    curves = {w.plain("merged"): found.curve}
    return [
        f"<h2>{w('learned')}</h2>",
        _how(how),
        _plot(plots.coefficients(rows, w.plain)),
        _plot(plots.training_curves(curves, w.plain, w.plain("learning_plot"))),
    ]


def _cost(arm: ArmResult) -> Cost:
    assert arm.cost is not None  # it was trained
    return arm.cost


def _entangled(version: Version, w: Words) -> list[str]:
    xi = version.search.disentanglement
    together = xi.together
    if not together:
        return []
    worst = max(together, key=together.__getitem__)
    mean = sum(together.values()) / len(together)
    parts = [f"<h2>{w('xi')}</h2>", _how(w("xi_how", mean=mean, worst=worst, most=together[worst]))]
    if xi.pairs:
        labels = map(w.plain, ("joins", "inputs_of", "xi_plot"))
        parts.append(_plot(plots.heatmap(xi.pairs, xi.tasks, xi.tasks, *labels)))
    return parts


def _mask(folder: RunFolder, info: Mapping[str, Any], w: Words) -> list[str]:
    if (mask := folder.load_mask(info["base"])) is None:
        return []
    about: Mapping[str, Any] = mask.info
    parts = [
        f"<h2>{w('mask')}</h2>",
        _how(w("mask_how", k=mask.k, total=mask.layout.total, strategy=about.get("strategy"))),
        _plot(plots.mask_by_tensor(mask.density(), w.plain)),
    ]
    if stability := about.get("stability"):
        parts += [_how(w("stability_how")), _plot(plots.stability(stability, w.plain))]
    if overlap := about.get("overlap"):
        rows = [[t, f"{o:.2f}"] for t, o in overlap.items()]
        parts += [_how(w("overlap_how")), _table([w("task"), w("overlap")], rows)]
    return parts


def _took(version: Version, w: Words) -> list[str]:
    stages = version.stages
    if stages is None:
        return []
    rows = [[n, f"{s:.1f} s", str(stages.slots.get(n, ""))] for n, s in stages.seconds.items()]
    told = ("first_step", "merge_seconds", "object_store_peak")
    notes = [w(key, value=value) for key in told if (value := getattr(stages, key)) is not None]
    words = joined(" ", [w("in_all", seconds=version.seconds), *notes])
    return [f"<h2>{w('took')}</h2>", _how(words), _table([w("stage"), w("wall_time"), w("at_once")], rows)]
