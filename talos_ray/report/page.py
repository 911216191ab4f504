"""The report on a version: one page that opens offline, and its numbers as CSV and spreadsheet."""

from __future__ import annotations

import html
from collections.abc import Mapping

from talos_ray import gate
from talos_ray.report import plots, tables
from talos_ray.storage.run_folder import RunFolder, kind_of

CSS = """
:root{color-scheme:light dark;--ink:#1d2530;--dim:#5a6675;--ground:#fff;--line:#d5dbe3;--good:#1c7c43;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--dim:#a0abba;--ground:#14181f;--line:#343c48;--good:#5fd38d;--bad:#ff8a80}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:66rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-top:1px solid var(--line);padding-top:1rem}
p.how{color:var(--dim)}.decision{font-size:1.15rem;border-left:.3rem solid;padding:.5rem 1rem;font-weight:600}
.pass{border-color:var(--good);color:var(--good)}.hold{border-color:var(--bad);color:var(--bad)}.open{border-color:var(--dim)}
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


def decision(version: Mapping, approved: Mapping | None = None) -> tuple[str, str]:
    """'pass', 'hold' or 'open', and the sentence that says why: what the gate says of a version, or who approved it."""
    notes, means, scores = [], version["summary"], version["scores"]
    if version["kind"] == "base":
        return "pass", "This is the base, as it was before any edit."
    if "merged" in means:
        gain = means["merged"] - means["zero_shot"]
        notes.append(f"targets {means['zero_shot']:.3f} to {means['merged']:.3f} ({gain:+.3f})")
    notes += [f"{c} keeps {k:.1%} of its base score" for c, k in means["control_kept"].items()]
    for task in version.get("forgotten", ()):
        s = scores[task]
        notes.append(f"{task} forgotten, {s['base']['value']:.3f} in the base and {s['merged']['value']:.3f} now")
    words, judged = "; ".join(notes) or "no target task is left", version["gate"]
    why = "; ".join(gate.told(judged))
    if approved:
        return "pass", f"Approved by {approved['by']} ({approved['reason']}), although: {why}. {words}."
    if judged["result"] == gate.PASS:
        return "pass", f"Pass: {words}." if judged["checks"] else f"No gate and no control task: {words}."
    if judged["result"] == gate.FAIL:
        return "hold", f"Hold: {why}. {words}."
    return ("hold" if judged["settings"]["strict"] else "open"), f"Not enough data to tell: {why}. {words}."


def render(
    folder: RunFolder, info: Mapping, version: dict, approved: Mapping | None = None, robustness: Mapping | None = None
) -> dict[str, bytes]:
    """The report on one version: {"html": the page, "csv": its scores, "xlsx": all tables}. Numbers are the version's, to the digits shown."""
    standing, sentence = decision(version, approved)
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
    name = folder.store.uri.rstrip("/").rsplit("/", 1)[-1]
    parts = [
        f"<h1>{html.escape(name)}, version {version['version']}</h1>",
        f'<p class="decision {standing}">{html.escape(sentence)}</p>',
        f"<p>{_next(standing, version)}</p>",
        "<h2>Targets and control, side by side</h2>",
        "<p class=how>Accuracy on test data with 95 % intervals. The merged model should gain on targets and hold on control; single is what each edit reaches alone.</p>",
        _table(["task", "kind", "coefficient", "base", "merged", "change", "single", "n"], rows),
        plots.scores({t: scores[t] for t in shown}),
    ]
    if checks := version.get("gate", {}).get("checks"):
        parts += _gate(checks)
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
    parts += _choice(version)
    parts += _scope(version)
    parts += _robustness(version, robustness) if robustness else []
    so_far = [*(folder.load_version(n) for n in folder.versions() if n < version["version"]), version]
    parts += _drift(so_far)
    parts += _how_it_was_made(folder, version, info)
    title = f"{html.escape(name)}, version {version['version']}"
    page = f'<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1"><title>{title}</title><style>{CSS}</style></head><body><main>{"".join(parts)}</main></body></html>\n'
    sheets = {
        "scores": tables.scores(version), "gate": tables.checks(version), "impact": tables.impact(version), "versions": tables.drift(so_far),
    }  # fmt: skip
    return {"html": page.encode(), "csv": tables.as_csv(sheets["scores"]), "xlsx": tables.as_xlsx(sheets, sentence)}


def _next(standing: str, version: Mapping) -> str:
    """What the reader can do now."""
    number = version["version"]
    if version["kind"] == "base":
        return (
            "Nothing to decide: it is what every edit is compared with, and what rolling back to version 0 gives again."
        )
    undo = f"To undo it, exactly: <code>talos rollback RUN {max(0, number - 1)}</code>."
    look = f"To see which answers changed: <code>talos compare RUN 0 {number} --out changed.csv</code>."
    if standing == "hold":
        return f"It is not in use. Leave it, change what it says and edit again, or put it in force all the same: <code>talos approve RUN {number} --by NAME --reason TEXT</code>. {look}"
    if standing == "open":
        return f"It is used on trust. Add the test data that are missing, or {undo[0].lower()}{undo[1:]} {look}"
    return f"Nothing holds it back. {look} {undo}"


def _gate(checks: list[dict]) -> list[str]:
    rows = [
        [
            html.escape(c["what"]), f"{c['wanted']:.3f}",
            f"{c['value']:.3f} <small>{c['low']:.3f}-{c['high']:.3f}</small>", str(c["n"] or ""),
            c["result"] + (f", {c['more']:,} more inputs needed" if c["more"] else ""),
        ]
        for c in checks
    ]  # fmt: skip
    return [
        "<h2>The gate</h2>",
        "<p class=how>What the spec wants of every version. A condition is met when its whole 95 % interval is; where the interval lies on both sides, more test data would tell.</p>",
        _table(["condition", "wanted", "found", "n", "result"], rows),
    ]


def _setting(chosen: Mapping) -> str:
    return (
        f"{chosen['strategy']}, {chosen['granularity']}, {chosen['keep']:.0%}, learning rate &times; {chosen['lr']:g}"
    )


def _choice(version: Mapping) -> list[str]:
    choice = version.get("choice")
    if not choice:
        return []
    tried = sorted(choice["tried"], key=lambda r: (-r["held"], -r["merged"]))
    rows = [
        [
            f"{r['setting']['strategy']}, {r['setting']['granularity']}", f"{r['setting']['keep']:.0%}", f"&times; {r['setting']['lr']:g}",
            f"{r['work']:.0%}", f"{r['single']:.3f}", f"{r['merged']:.3f} &plusmn; {r['error']:.3f}", "" if r["control"] is None else f"{r['control']:.1%}",
            "" if r.get("disentanglement") is None else f"{r['disentanglement']:.1%}", "yes" if r["held"] else "no",
        ]
        for r in tried
    ]  # fmt: skip
    return [
        "<h2>How the mask was chosen</h2>",
        f"<p class=how>Short runs of {tried[0]['share']:.0%} of the training each, merged and scored on validation data, best first. Scores on validation data are uncertain, so of those within {choice['asked']['auto']['tolerance']:g} standard errors of the best the one was trained in full that computes the least weight gradients: {_setting(choice['chosen'])}. It took {choice['seconds']:.0f} s, apart from the training. &xi; is the disentanglement error: predictions that the other edits change.</p>",
        _table(
            ["weights that may change", "share", "learning rate", "weight gradients", "single", "merged", "control kept", "&xi;", "holds"], rows
        ),
        "<p class=how>How local an edit can be before it stops being useful: the same scores by the share of weights that may change. Hollow points let a control task fall.</p>",
        plots.trade_off(choice["tried"]),
    ]  # fmt: skip


def _scope(version: Mapping) -> list[str]:
    impact = version.get("impact")
    if not impact or not impact["tensors"]:
        return []
    changed = sum(t["changed"] for t in impact["tensors"].values())
    flipped = [[html.escape(t), kind_of(version, t), f"{share:.1%}"] for t, share in impact["flipped"].items()]
    return [
        "<h2>How far the change reaches</h2>",
        f"<p class=how>{changed:,} weights in {len(impact['tensors'])} tensors differ from the base; every other weight is bitwise the same. A bar is the length of a tensor's change relative to its own: a long one is a part of the model that this version leans on.</p>",
        plots.impact(impact["tensors"]),
        "<p class=how>Test inputs that are answered differently than by the base. On targets that is the purpose; on control tasks it is the price, also where the score stays the same.</p>",
        _table(["task", "kind", "answers changed"], flipped),
    ]


def _robustness(version: Mapping, found: Mapping) -> list[str]:
    rows = []
    for task, kinds in found.items():
        for name, s in kinds.items():
            change = s["merged"]["value"] - s["base"]["value"]
            rows.append([html.escape(task), kind_of(version, task), name, _interval(s["base"]), _interval(s["merged"]), f"{change:+.3f}"])  # fmt: skip
    return [
        "<h2>Is it more fragile?</h2>",
        f"<p class=how>The same test inputs, spoilt a little, by seed. {_fragile_words(version, found)}</p>",
        _table(["task", "kind", "test data", "base", "merged", "change"], rows),
    ]


def _fragile_words(version: Mapping, found: Mapping) -> str:
    """What corruption leaves of the targets' accuracy, on average."""
    left = {}
    for model in ("base", "merged"):
        shares = [
            s[model]["value"] / max(kinds["none"][model]["value"], 1e-9)
            for task, kinds in found.items()
            if task in version["targets"]
            for name, s in kinds.items()
            if name != "none"
        ]
        left[model] = sum(shares) / len(shares) if shares else 1.0
    return f"On average the base keeps {left['base']:.1%} of its targets' accuracy under them, this version {left['merged']:.1%}."


def _drift(versions: list[Mapping]) -> list[str]:
    if len(versions) < 2:
        return []
    return [
        "<h2>Scores over versions</h2>",
        "<p class=how>Test accuracy of every task in every version so far. A control line that sinks from left to right is the price of many edits.</p>",
        plots.drift(versions),
    ]


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
    again = {m: told["beyond"][m]["retrained"]["value"] for m in ("base", "before", "now")}
    return (
        f"Linear probe: base {probes['base']:.3f}, before {probes['before']:.3f}, now {probes['now']:.3f}. "
        f"Trained again for {told['retrained_steps']} steps, accuracy is {again['base']:.3f} from the base, {again['before']:.3f} from before, {again['now']:.3f} from now: "
        "what comes back at once was not gone."
    )


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
