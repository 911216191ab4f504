"""The report's texts in English. `report.japanese` has the same keys and the same places."""

TEXTS = {
    "title": "{run}, version {number}",
    # the decision line
    "is_base": "This is the base, as it was before any edit.",
    "gain": "targets {before:.3f} to {after:.3f} ({change:+.3f})",
    "control_kept": "{task} keeps {kept:.1%} of its base score",
    "forgotten": "{task} forgotten, {before:.3f} in the base and {after:.3f} now",
    "no_target": "no target task is left",
    "joint": "; ",
    "pass": "Pass: {words}.",
    "no_gate": "No gate and no control task: {words}.",
    "hold": "Hold: {why}. {words}.",
    "open": "Not enough data to tell: {why}. {words}.",
    "at_risk": "In force without being shown to hold, because the gate says strict: false. {words}",
    "approved": "Approved by {by} ({reason}), although: {why}. {words}.",
    "control_keep": "share of its base score kept by control {task}",
    "target_keep": "share of its base score kept by target {task}",
    "target_gain": "mean gain of the targets",
    "disentanglement": "mean disentanglement error",
    "found": "{what} is {value:.3f} ({low:.3f} to {high:.3f}), wanted {wanted:.3f}",
    "found_open": "{found}: not enough data to tell, about {more:,} to {most:,} more test inputs needed",
    "found_open_end": "{found}: not enough data to tell, {more:,} more test inputs needed, or many times as many",
    "found_lost": "{found}: not enough data to tell, more test inputs may not help",
    # what to do next
    "next_base": (
        "Nothing to decide: it is what every edit is compared with, and what rolling back to version 0 gives again."
    ),
    "undo": "To undo it, exactly: <code>talos rollback RUN {number}</code>.",
    "look": "To see which answers changed: <code>talos compare RUN 0 {number} --out changed.csv</code>.",
    "next_hold": (
        "It is not in use. Leave it, change what it says and edit again, or put it in force all the same: <code>talos "
        "approve RUN {number} --by NAME --reason TEXT</code>. {look}"
    ),
    "next_open": (
        "It is used on trust, and may well be worse than what was asked; more test data would tell, and strict: true "
        "in the gate keeps such versions aside. {look} {undo}"
    ),
    "next_pass": "Nothing holds it back. {look} {undo}",
    # targets and control
    "scores": "Targets and control, side by side",
    "scores_how": (
        "Accuracy on test data with 95 % intervals. The merged model should gain on targets and hold on control; "
        "single is what each edit reaches alone. Probe is what you would have without any edit: the base, with a "
        "linear head of the task's own. Where the merged model has such heads, <i>words</i> is the merged model under "
        "the frozen ones."
    ),
    "balanced": "Score of {tasks}: balanced accuracy, the mean over the classes, so that a rare one counts as much.",
    "task": "task",
    "kind": "kind",
    "coefficient": "coefficient",
    "base": "base",
    "merged": "merged",
    "change": "change",
    "single": "single",
    "target": "target",
    "control": "control",
    "forgotten_kind": "forgotten",
    "other": "other",
    "by_class": "By class",
    "by_class_how": (
        "Behind each accuracy, task by task: of a class's inputs, how many are answered right (recall); of the "
        "answers that name it, how many are right (precision); and the class that it is mostly taken for."
    ),
    "by_class_means": "Balanced accuracy (mean recall) {balanced:.3f}, macro F1 {f1:.3f}.",
    "by_class_calibration": (
        "Expected calibration error {error:.3f}, in {bins} bins of equal width: how far the probability of an answer "
        "is from how often it is right."
    ),
    "recall": "recall",
    "precision": "precision",
    "taken_for": "mostly taken for",
    "accuracy_test": "accuracy on test data",
    "plotted": (
        "Plots show {n} of {all} tasks: control tasks, and those with the least gain over the base. Tables have all."
    ),
    "and_more": "and {n} more",
    "scores_plot": "Accuracy of base, merged model and single edits by task",
    # the gate
    "gate": "The gate",
    "gate_how": (
        "What the spec wants of every version. A condition is met when its whole 95 % interval is; where the interval "
        "lies on both sides, more test data would tell. Where {together} tasks or more are asked the same, one fails "
        "only by Holm's rule, so that chance alone fails none of them more often than it would a single one."
    ),
    "condition": "condition",
    "wanted": "wanted",
    "found_head": "found",
    "result": "result",
    "result_pass": "pass",
    "result_fail": "fail",
    "result_open": "not enough data to tell",
    "more_needed": "{result}, {more:,} to {most:,} more inputs needed",
    "more_needed_end": "{result}, {more:,} more inputs needed, or many times as many",
    "looked": "look {number}",
    "looks_how": (
        "These test inputs were looked at before: the number of the look stands beside the score. An interval holds "
        "for a first look; of versions that were chosen by looking again and again, the best looks better than it is."
    ),
    # forgetting
    "negation": "How {task} was forgotten",
    "negation_how": (
        "The coefficients of its delta were learned so that its answers come to be as good as chance, under more and "
        "more pressure to leave the others as they are; what was chosen is the lowest accuracy at which every other "
        "task keeps {keep:.0%} on validation data. The dotted line is chance."
    ),
    "beyond_how": (
        "Beyond accuracy: what it answers instead, and what a linear classifier on its features still reaches. As "
        "high as in the base, the knowledge is out of reach of the task's own words and not gone. Linear probe: base "
        "{probe_base:.3f}, before {probe_before:.3f}, now {probe_now:.3f}. Trained again for {steps} steps, accuracy "
        "is {again_base:.3f} from the base, {again_before:.3f} from before, {again_now:.3f} from now: what comes back "
        "at once was not gone."
    ),
    "class": "class",
    "inputs": "inputs",
    "predicted_base": "predicted by the base",
    "before": "before",
    "now": "now",
    "kept_least": "who keeps least",
    "accuracy_kept": "accuracy / share kept",
    "negation_plot": "Accuracy of the forgotten task and the share that others keep, by pressure",
    # beside dense fine-tuning
    "dense": "Beside dense fine-tuning",
    "dense_how": (
        "The same tasks, steps and batches, every eligible weight trained, merged by the same search: dense task "
        "arithmetic. Whichever wins is shown."
    ),
    "mean_targets": "mean over targets",
    "sparse_arm": "sparse edit",
    "dense_arm": "dense",
    "zero_shot": "zero-shot",
    "single_task": "single-task",
    "normalized": "normalized merged",
    "control_row": "control {task} kept",
    "training_time": "training, sum over tasks",
    "stored": "stored deltas",
    "state": "optimizer values, gradient, moments",
    "may_change": "weights that may change",
    # how the mask was chosen
    "choice": "How the mask was chosen",
    "choice_how": (
        "Short runs of {share:.0%} of the training each, merged and scored on validation data, best first. Scores on "
        "validation data are uncertain, so of those within {tolerance:g} standard errors of the best the one was "
        "trained in full that computes the least: {chosen}. It took {seconds:.0f} s, apart from the training. &xi; is "
        "the disentanglement error: predictions that the other edits change."
    ),
    "setting": (
        "{strategy}, {granularity}, {keep:.0%} of all weights, from {layers:.0%} of the layers, learning rate &times; "
        "{lr:g}"
    ),
    "share": "share",
    "learning_rate": "learning rate",
    "layers": "layers",
    "step_work": "a step's work",
    "kept_head": "control kept",
    "holds": "holds",
    "yes": "yes",
    "no": "no",
    "trade_off_how": (
        "How local an edit can be before it stops being useful: the same scores by the share of weights that may "
        "change. Hollow points let a control task fall."
    ),
    "share_may_change": "share of weights that may change",
    "accuracy_validation": "accuracy on validation data",
    "trade_off_plot": "Validation accuracy of every short run by its share of weights; dots merged, dashes single",
    # how far the change reaches
    "impact": "How far the change reaches",
    "impact_how": (
        "{changed:,} weights in {tensors} tensors differ from the base; every other weight is bitwise the same. A bar "
        "is the length of a tensor's change relative to its own: a long one is a part of the model that this version "
        "leans on."
    ),
    "impact_axis": "length of the change / length of the base",
    "impact_plot": "Relative change of every tensor that changed",
    "flipped_how": (
        "Test inputs that are answered differently than by the base. On targets that is the purpose; on control tasks "
        "it is the price, also where the score stays the same."
    ),
    "flipped": "answers changed",
    "imported_how": (
        "Of these edits, somebody else's checkpoint was brought in, and what it changed off the mask was left behind: "
        "a share of the squared length of its change. Their score alone, above, is what is left of it."
    ),
    "imported": "lost off the mask",
    "checkpoint": "checkpoint",
    # robustness
    "robustness": "Is it more fragile?",
    "robustness_how": (
        "The same test inputs, spoilt a little, by seed. On average the base keeps {base:.1%} of its targets' "
        "accuracy under them, this version {merged:.1%}."
    ),
    "test_data": "test data",
    # drift
    "drift": "Scores over versions",
    "drift_how": (
        "Test accuracy of every task in every version so far. A control line that sinks from left to right is the "
        "price of many edits."
    ),
    "drift_plot": "Accuracy of every task over versions",
    "version": "version",
    "watched": "Scores on data that arrived later",
    "watched_how": (
        "What <code>talos watch</code> found since this version is in force: accuracy on new data, of the base and of "
        "this version."
    ),
    "data": "data",
    "when": "when",
    # search
    "search": "The search for coefficients",
    "search_how": (
        "Each point is one candidate, judged on validation data; hollow ones let a control task fall and cannot win. "
        "{words}"
    ),
    "tried": "{n} candidate(s) were tried; the best is what the table above uses.",
    "methods": "By merge method: {methods}.",
    "mean_coefficient": "mean coefficient",
    "normalized_validation": "normalized validation accuracy",
    "sparse": "sparse",
    "search_plot": "Normalized validation accuracy of every candidate by its mean coefficient",
    # the learned merge
    "probe": "probe",
    "merged_words": "words",
    "probe_enough": "a linear probe on the untouched base would do for: {tasks}",
    "not_learnt": "not learnt: {tasks}",
    "from_to": "{task} ({before:.3f} to {after:.3f})",
    "gain_kept": "{task} keeps {share:.0%} of what its single edit gains, the least of all",
    "not_all": "In force, because the gate does not ask for it: {words}.",
    "learned": "The learned merge",
    "learned_how": (
        "{count:,} coefficients, {granularity}; learned from {teacher}, under a pressure of {pressure:g} to leave "
        "control as it is. Own heads: {heads}. The map shows each task's mean coefficient in every tensor: dark where "
        "much of its edit is used."
    ),
    "teacher_edits": "the answers of the single edits",
    "teacher_labels": "labels",
    "teacher_both": "the answers of the single edits and labels",
    "by_task": "one a task",
    "by_group": "one a task and group of layers",
    "by_tensor": "one a task and tensor",
    "by_row": "one a task and output row",
    "learned_plot": "Mean coefficient by task and tensor",
    "tensor": "tensor",
    "reached": "By granularity: {reached}.",
    "none": "none",
    "learning_plot": "Loss of the learned merge by step",
    "pressure": "pressure of the others",
    "merge_seconds": "The merge search took {value:.1f} s.",
    # disentanglement
    "xi": "Do the edits disturb each other?",
    "xi_how": (
        "Share of a task's validation inputs (row) whose prediction changes when one other edit (column) joins its "
        "own, at this version's coefficients. Light is good; a dark cell names two tasks that compete, a dark row one "
        "that all others disturb. All other edits together change {mean:.1%} of a task's predictions on average, most "
        "for {worst} ({most:.1%})."
    ),
    "joins": "the edit that joins",
    "inputs_of": "inputs of",
    "xi_plot": "Disentanglement error by pair of tasks",
    # training
    "training": "Training",
    "training_how": (
        "Falling curves mean that the task is being learnt; one that stays flat needs more steps or another learning "
        "rate."
    ),
    "step": "step",
    "loss": "training loss",
    "training_plot": "Training loss of every task by step",
    # the mask
    "mask": "Which weights may change",
    "mask_how": (
        "{k:,} of {total:,} eligible weights ({strategy}); all others are bitwise the base in every version. A long "
        "bar is a tensor to which the model is insensitive."
    ),
    "mask_plot": "Share of masked weights by tensor",
    "stability_how": (
        "How sure the mask is: each point compares it with its estimate one wave of samples earlier. A round ends "
        "once the overlap reaches the spec's calibration.stable; a curve that is still rising at its end wants more "
        "samples."
    ),
    "waves": "waves of samples",
    "overlap_before": "overlap with the estimate before",
    "round": "round {n}",
    "stability_plot": "Overlap of successive estimates of the mask by waves of samples",
    "overlap_how": (
        "Overlap (Jaccard) of the shared mask with the mask each task would have chosen alone: near 1, sharing costs "
        "nothing; near 0, it is wrong for that task."
    ),
    "overlap": "overlap",
    # costs
    "took": "What the run took",
    "in_all": "{seconds:.1f} s in all.",
    "first_step": "The first training step came after {value:.1f} s.",
    "object_store_peak": "Ray's object stores held {value:,} bytes at most, all nodes together.",
    "stage": "stage",
    "wall_time": "wall time",
    "at_once": "at once",
    "facts": "Fingerprints and software",
    "what": "what",
    "value": "value",
    "model": "model",
    "made": "made",
    # the dossier
    "dossier_title": "Modification dossier: {run}, version {number}",
    "dossier_how": (
        "What was changed in a model, by whom, on which data, at what cost and with what result. Made {made} from the "
        "run's record; <code>dossier.json</code> beside this page holds the same figures."
    ),
    "in_force": "This version is in force.",
    "not_in_force": "This version is not in force.",
    "not_stated": "not stated",
    "not_known": "not known",
    "not_counted": "not counted",
    "changed_head": "What was changed",
    "model_licence": "licence of the base",
    "parameters": "parameters of the model",
    "mask_share": "{k:,} of {total:,} eligible weights ({share:.2%})",
    "how_chosen": "how they were chosen",
    "weights_changed": "weights that differ from the base",
    "changed_of": "{changed:,}, in {tensors:,} tensors; every other weight is the base, bit by bit",
    "stored_bytes": "bytes of the stored edits",
    "merge_method": "merge method",
    "edits": "edits and their coefficients",
    "people": "By whom",
    "people_how": (
        "Every operation that led to this version, and what was done with it since, as the history has it. Names are "
        "those that the machines gave; a key stands where somebody has signed."
    ),
    "event": "event",
    "operation": "operation",
    "by_whom": "account",
    "remark": "name, reason, key",
    "approval": "Approval",
    "approved_by": (
        "Approved by {by} on {time} UTC (account {user}@{host}), although its gate did not let it through: {reason}"
    ),
    "signed_by": "The record was signed afterwards with: {keys}",
    "not_signed": "The approval is not signed.",
    "held_unapproved": "The gate keeps this version aside, and nobody has approved it.",
    "no_approval": "None was needed: its gate lets this version through, or asks for nothing.",
    "data_head": "Data",
    "data_how": (
        "Edits were trained on training data, chosen by validation data and judged on test data; control tasks were "
        "held, and not learnt. A licence is what whoever made this dossier stated, or what a card beside the data says."
    ),
    "source": "source",
    "licence": "licence",
    "n_train": "training",
    "n_validation": "validation",
    "n_test": "test",
    "state_of_data": "data now",
    "data_as_recorded": "as recorded",
    "data_changed": "changed since",
    "data_unreachable": "out of reach",
    "compute": "Compute of the modification",
    "compute_how": (
        "Floating-point operations of all that the run did up to this version, earlier versions included. One update "
        "of every task, one calibration batch and one forward were done anew, and their matrix products, attention and "
        "convolutions counted, a multiplication and an addition as two; the record says how often each was done. "
        "Element by element work, and what was given up early or repeated after a failure, is not in it. Tasks that "
        "kept their coefficients in a merge are counted as if they had been learnt again, and scoring, which trains "
        "nothing, is "
        "counted too: both make the sum larger."
    ),
    "operations": "operations",
    "stage_choice": "choice of the mask by short runs, at most",
    "stage_calibration": "calibration of the mask",
    "stage_training": "training of the edits",
    "stage_merge": "search for the merge",
    "stage_scoring": "scoring on test data",
    "stages_in_all": "modification in all",
    "dense_beside": "dense fine-tuning, trained beside for comparison: no part of the modification",
    "updates": "updates",
    "inputs_each": "inputs each",
    "per_update": "operations an update",
    "third_head": "The one-third rule",
    "third_rule": (
        "The European Commission's guidelines name an indicative criterion: whoever modifies a general-purpose AI "
        "model is taken for the provider of the modified model if the modification was trained with more than a third "
        "of the compute that the original model was trained with."
    ),
    "base_compute": "training compute of the base, as stated",
    "third_of_base": "a third of it",
    "share_of_base": "the modification is",
    "over_third": "more than a third",
    "under_third": "not more than a third",
    "third_unknown": (
        "Nobody stated the base's training compute. Where whoever modifies a model can neither know nor estimate it, "
        "the guidelines put a third of a threshold in its place:"
    ),
    "stand_in": "if the original model is",
    "third": "a third of the threshold",
    "stand_in_general_purpose": "another general-purpose AI model (10^23)",
    "stand_in_systemic_risk": "a general-purpose AI model with systemic risk (10^25)",
    "no_law": (
        "These are figures. Whether the base is a general-purpose AI model, whether anything follows from the rule, "
        "and for whom, is for lawyers to say."
    ),
    "dossier_scores_how": (
        "Accuracy on test data with 95 % intervals: what the base scores, what this version scores, and what each edit "
        "scores alone."
    ),
    "limits": "Limits",
    "limit_beyond": (
        "Scores hold for these test sets. What else the base can do beyond the control tasks was not measured, and its "
        "biases remain."
    ),
    "limit_no_control": "No control task was named: nothing shows what the edit did to everything else.",
    "limit_held": "The gate keeps this version aside, and nobody has approved it.",
    "limit_unmet": "Of {all} conditions of the gate {n} are not met, or cannot be told to be met.",
    "limit_not_learnt": "Not learnt, no better than in the base: {tasks}.",
    "limit_probe": "Not shown to be better than the untouched base under a linear head of the task's own: {tasks}.",
    "limit_forgotten": (
        "Forgotten on purpose: {tasks}. Answers were made worse; that is no proof that nothing can be recovered."
    ),
    "limit_looks": "Judged on test data that earlier versions were judged on too, so it may look too good: {tasks}.",
    "limit_no_robustness": "How the version does on spoilt inputs was not tested.",
    "limit_unreachable": "Data that cannot be read here any more, so that they were not counted: {tasks}.",
    "limit_changed": "Data that are not what the version saw, so that they were not counted: {tasks}.",
    "limit_no_licence": "The licence of the data is not stated: {tasks}.",
    "limit_note": "Data of {task}: {note}",
    "limit_imported": (
        "The edit of {task} was trained elsewhere: what that took is not known and not counted. {lost:.1%} of its "
        "change lay off the mask and was left behind."
    ),
    "limit_not_counted": "Operations were not counted: {why}",
    "hashes": "Hashes",
    "hashes_how": (
        "SHA-256. That of the record covers its {events:,} events and every file that they name: <code>talos verify "
        "RUN --expect HASH</code> shows later that it is still part of the history."
    ),
    "record": "record, newest event",
    "delta_of": "edit of {task}",
    "data_of_train": "training data of {task}",
    "data_of_validation": "validation data of {task}",
    "data_of_test": "test data of {task}",
}
