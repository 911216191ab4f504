"""Write report/index.html and report/scores.csv for the version at head."""

from __future__ import annotations

import csv
import html
import io

from talos_ray.report import plots
from talos_ray.storage.run_folder import RunFolder, kind_of

CSS = """
:root{color-scheme:light dark;--ink:#1d2530;--dim:#5a6675;--ground:#fff;--line:#d5dbe3;--good:#1c7c43;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--dim:#a0abba;--ground:#14181f;--line:#343c48;--good:#5fd38d;--bad:#ff8a80}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:66rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-top:1px solid var(--line);padding-top:1rem}
p.how{color:var(--dim)}.decision{font-size:1.15rem;border-left:.3rem solid;padding:.5rem 1rem;font-weight:600}
.pass{border-color:var(--good);color:var(--good)}.hold{border-color:var(--bad);color:var(--bad)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}th:first-child,td:first-child{text-align:left}
svg{width:100%;height:auto}small{color:var(--dim)}@media print{body{max-width:none}h2{break-after:avoid}svg{break-inside:avoid}}
"""


def _interval(score: dict | None) -> str:
    return "" if score is None else f"{score['value']:.3f} <small>{score['low']:.3f}-{score['high']:.3f}</small>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th scope=col>{h}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"


def decision(version: dict, control_keep: float) -> tuple[bool, str]:
    """Whether every control task holds on test data, and the sentence that says so."""
    kept = version["summary"]["control_kept"]
    fallen = {c: k for c, k in kept.items() if k < control_keep}
    notes, means = [], version["summary"]
    if "merged" in means:
        gain = means["merged"] - means["zero_shot"]
        notes.append(f"targets {means['zero_shot']:.3f} to {means['merged']:.3f} ({gain:+.3f})")
    for task in version.get("forgotten", ()):
        s = version["scores"][task]
        notes.append(f"{task} forgotten, {s['base']['value']:.3f} in the base and {s['merged']['value']:.3f} now")
    words = "; ".join(notes) or "no target task is left"
    if fallen:
        worst = min(fallen, key=fallen.get)
        return (
            False,
            f"Hold: control task {worst} keeps {fallen[worst]:.1%} of its base score, wanted at least {control_keep:.0%}; {words}.",
        )
    held = ", ".join(f"{c} keeps {k:.1%}" for c, k in kept.items()) or "no control task was given"
    return True, f"Pass: {held}; {words}."


def write_report(folder: RunFolder) -> None:
    """Report on head. Numbers are those of its version file, to the digits shown."""
    version, info = folder.load_version(folder.head), folder.info()
    spec = info["spec"]
    good, sentence = decision(version, spec["search"]["control_keep"])
    scores, targets = version["scores"], version["targets"]
    rows = []
    shown = (*targets, *version.get("others", ()), *version["controls"])
    for task in shown:
        s = scores[task]
        alpha = version["coefficients"].get(task)
        kind = kind_of(version, task)
        change = s["merged"]["value"] - s["base"]["value"]
        rows.append(
            [
                html.escape(task),
                kind,
                "" if alpha is None else f"{alpha:.2f}",
                _interval(s["base"]),
                _interval(s["merged"]),
                f"{change:+.3f}",
                _interval(s.get("single")),
                str(s["base"]["n"]),
            ]
        )
    parts = [
        f"<h1>{html.escape(spec['output'])}: version {version['version']}</h1>",
        f'<p class="decision {"pass" if good else "hold"}">{html.escape(sentence)}</p>',
        "<h2>Targets and control, side by side</h2>",
        "<p class=how>Accuracy on test data with 95 % intervals. The merged model should gain on targets and hold on control; single is what each edit reaches alone.</p>",
        _table(["task", "kind", "coefficient", "base", "merged", "change", "single", "n"], rows),
        plots.scores({t: scores[t] for t in shown}),
    ]
    if told := version.get("negation"):
        parts += [
            f"<h2>How {html.escape(told['task'])} was forgotten</h2>",
            f"<p class=how>Validation accuracy by its coefficient. Further left forgets more and costs the others more; what was chosen is the lowest point at which every other task keeps {told['keep']:.0%}. The dotted line is chance.</p>",
            plots.negation(told),
            f"<p class=how>Beyond accuracy: what it answers instead, and what a linear classifier on its features still reaches. As high as in the base, the knowledge is out of reach of the task's own words and not gone. {_probe_words(told)}</p>",
            _table(
                ["class", "inputs", "predicted by the base", "before", "now"],
                [
                    [html.escape(c), *(str(n) for n in counts)]
                    for c, *counts in zip(
                        told["classes"],
                        told["beyond"]["now"]["labels"],
                        *(told["beyond"][m]["predicted"] for m in ("base", "before", "now")),
                        strict=True,
                    )
                ],
            ),
        ]
    parts += _comparison(version)
    parts += _how_it_was_made(folder, version, info)
    title = f"talos_ray: {html.escape(spec['output'])}"
    page = f'<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1"><title>{title}</title><style>{CSS}</style></head><body><main>{"".join(parts)}</main></body></html>\n'
    folder.store.write("report/scores.csv", _csv(version).encode())
    folder.store.write("report/index.html", page.encode())


def _comparison(version: dict) -> list[str]:
    dense = version.get("baseline")
    if not dense:
        return []
    rows = []
    for word, key in (
        ("zero-shot", "zero_shot"),
        ("single-task", "single"),
        ("merged", "merged"),
        ("normalized merged", "normalized"),
    ):
        rows.append([word, f"{version['summary'][key]:.3f}", f"{dense['summary'][key]:.3f}"])
    for c, kept in version["summary"]["control_kept"].items():
        rows.append([f"control {html.escape(c)} kept", f"{kept:.1%}", f"{dense['summary']['control_kept'][c]:.1%}"])
    a, b = version["cost"], dense["cost"]
    rows += [
        ["training, sum over tasks", f"{a['train_seconds']:.1f} s", f"{b['train_seconds']:.1f} s"],
        ["stored deltas", f"{a['delta_bytes'] / 1e6:.2f} MB", f"{b['delta_bytes'] / 1e6:.2f} MB"],
        ["optimizer values, gradient, moments", f"{a['state_bytes'] / 1e6:.2f} MB", f"{b['state_bytes'] / 1e6:.2f} MB"],
        ["weights that may change", f"{a['weights_changed']:,}", f"{b['weights_changed']:,}"],
    ]
    return [
        "<h2>Beside dense fine-tuning</h2>",
        "<p class=how>The same tasks, steps and batches, every eligible weight trained, merged by the same search: dense task arithmetic. Whichever wins is shown.</p>",
        _table(["mean over targets", "sparse edit", "dense"], rows),
    ]


def _how_it_was_made(folder: RunFolder, version: dict, info: dict) -> list[str]:
    arms = {
        name: found["search"]
        for name, found in (("sparse", version), ("dense", version.get("baseline")))
        if found and "search" in found
    }
    mask = folder.load_mask(info["base"])
    parts = []
    if arms:
        parts += [
            "<h2>The search for coefficients</h2>",
            f"<p class=how>Each point is one truly evaluated candidate; hollow ones let a control task fall and cannot win. {_search_words(arms['sparse'])}</p>",
            plots.candidates({name: a["candidates"] for name, a in arms.items()}),
        ]
    if xi := version.get("search", {}).get("disentanglement"):
        parts += [
            "<h2>Do the edits disturb each other?</h2>",
            f"<p class=how>Share of a task's inputs (row) whose prediction changes when one other edit (column) joins its own, at this version's coefficients. Light is good; a dark cell names two tasks that compete, a dark row one that all others disturb. {_entangled_words(version['search'])}</p>",
            plots.heatmap(
                xi["pairs"],
                xi["tasks"],
                xi["tasks"],
                "the edit that joins",
                "inputs of",
                "Disentanglement error by pair of tasks",
            ),
            "<p class=how>Disentanglement error &xi;(&alpha;&#8321;, &alpha;&#8322;), mean over all pairs: how it grows with the coefficients of both. It says how far they may be raised before edits disturb each other.</p>",
            plots.heatmap(
                xi["grid"],
                [f"{p:g}" for p in xi["points"]],
                [f"{p:g}" for p in xi["points"]],
                "coefficient of one task",
                "of the other",
                "Mean disentanglement error by two coefficients",
            ),
        ]
    parts += [
        "<h2>Training</h2>",
        "<p class=how>Falling curves mean that the task is being learnt; one that stays flat needs more steps or another learning rate.</p>",
        plots.training_curves(
            {t: (folder.load_delta(t, mark).info.get("curve") or []) for t, mark in version["deltas"].items()}
        )
        if version["deltas"]
        else "",
    ]
    if mask is not None:
        overlap = mask.info.get("overlap") or {}
        parts += [
            "<h2>Which weights may change</h2>",
            f"<p class=how>{mask.k:,} of {mask.layout.total:,} eligible weights ({mask.info.get('strategy')}); all others are bitwise the base in every version. A long bar is a tensor to which the model is insensitive.</p>",
            plots.mask_by_tensor(mask.density()),
        ]
        if stability := mask.info.get("stability"):
            parts += [
                "<p class=how>How sure the mask is: each point compares it with its estimate one wave of samples earlier. A round ends once the overlap reaches the spec's calibration.stable; a curve that is still rising at its end wants more samples.</p>",
                plots.stability(stability),
            ]
        if overlap:
            parts += [
                "<p class=how>Overlap (Jaccard) of the shared mask with the mask each task would have chosen alone: near 1, sharing costs nothing; near 0, it is wrong for that task.</p>",
                _table(["task", "overlap"], [[html.escape(t), f"{o:.2f}"] for t, o in overlap.items()]),
            ]
    if stages := version.get("stages"):
        parts += _what_it_took(version["seconds"], stages)
    facts = [
        ["base", info["base"]],
        ["mask", version["mask"]],
        ["model", version["model"]],
        ["made", version["created"]],
        *[[k, v] for k, v in info["software"].items()],
    ]
    parts += [
        "<h2>Fingerprints and software</h2>",
        _table(["what", "value"], [[html.escape(str(a)), f"<code>{html.escape(str(b))}</code>"] for a, b in facts]),
    ]
    return parts


def _what_it_took(seconds: float, stages: dict) -> list[str]:
    rows = [[html.escape(n), f"{s:.1f} s", str(stages["slots"].get(n, ""))] for n, s in stages["seconds"].items()]
    told = {  # a version that an earlier release made may lack some
        "first_step": "The first training step came after {:.1f} s.",
        "candidate_overhead": "A candidate of the search cost {:.3f} s beyond its evaluation (median).",
        "object_store_peak": "Ray's object stores held {:,} bytes at most, all nodes together.",
    }
    notes = [text.format(stages[key]) for key, text in told.items() if stages.get(key) is not None]
    words = " ".join([f"{seconds:.1f} s in all.", *notes])
    return [
        "<h2>What the run took</h2>",
        f"<p class=how>{words}</p>",
        _table(["stage", "wall time", "at once"], rows),
    ]


def _probe_words(told: dict) -> str:
    probes = {m: told["beyond"][m]["probe"]["value"] for m in ("base", "before", "now")}
    return f"Linear probe: base {probes['base']:.3f}, before {probes['before']:.3f}, now {probes['now']:.3f}."


def _entangled_words(found: dict) -> str:
    together = found["disentanglement"]["together"]
    worst = max(together, key=together.get)
    return (
        f"All other edits together change {sum(together.values()) / len(together):.1%} of a task's predictions on average, most for {html.escape(worst)} ({together[worst]:.1%}). "
        f"These are first-order predictions; the true logits are {found['nonlinearity']:.2f} away from theirs, in units of how far the edit moves them (0: the edit is linear)."
    )


def _search_words(found: dict) -> str:
    words = f"{len(found['candidates'])} candidates were tried; the best is what the table above uses."
    if len(methods := found.get("methods", {})) > 1:
        words += f" {found['evaluated'] - len(found['candidates'])} more belong to merge methods that did less well ("
        words += ", ".join(f"{m} {o:.4f}" for m, o in methods.items()) + " at best)."
    if stopped := sum(not c.get("whole", True) for c in found["candidates"]):
        words += f" {stopped} of them were stopped after a part of the validation data: they were clearly behind."
    if found["correlation"] is not None:
        words += f" The surrogate's predictions ranked them as the truth did to a rank correlation of {found['correlation']:.2f}."
    return words + (" That was too little, so Optuna went on." if found["fell_back"] else "")


def _csv(version: dict) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["task", "kind", "coefficient", "model", "accuracy", "low", "high", "n"])
    for task, kinds in version["scores"].items():
        kind = kind_of(version, task)
        for model, s in kinds.items():
            writer.writerow(
                [task, kind, version["coefficients"].get(task, ""), model, s["value"], s["low"], s["high"], s["n"]]
            )
    return out.getvalue()
