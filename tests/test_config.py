"""Specs: what is accepted, and what a person is told about each mistake."""

import pytest
import yaml

import talos_ray
from talos_ray import SpecError, Task, load_spec
from talos_ray.config import ELSEWHERE, Spec, Train
from talos_ray.spec import make_spec

GOOD = {"model": "demo", "tasks": ["demo:counts"], "output": "x"}


def refused(match: str, **changes):
    with pytest.raises(SpecError, match=match) as caught:
        make_spec({**GOOD, **changes})
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def test_the_defaults_are_the_best_that_was_measured_and_the_paper_is_one_word_away():
    spec = make_spec(GOOD)
    mask, search = spec.mask, spec.search
    assert (mask.keep, mask.strategy, mask.granularity) == (0.2, "least_sensitive_per_tensor", "row")
    assert (search.method, search.granularity, search.heads, search.merge.method) == ("learned", "row", "auto", "linear")
    paper = make_spec({**GOOD, "preset": "paper"})
    mask, search = paper.mask, paper.search
    assert (mask.keep, mask.strategy, mask.granularity, paper.calibration.rounds) == (0.1, "least_sensitive", "element", 4)
    assert (search.method, search.shared_points, search.heads, search.merge.method) == ("grid", 21, "words", "linear")


def test_a_key_that_does_not_exist_names_the_nearest():
    refused(r"'trian' does not exist; did you mean 'train'", trian={})
    refused(r"'train\.stepz' does not exist; did you mean 'steps'", train={"stepz": 3})
    refused(
        r"'task a\.lable' does not exist; did you mean 'label'", tasks=[{"name": "a", "data": "x.csv", "lable": "y"}]
    )


@pytest.mark.parametrize("keep", [0, -0.1, 1.5])
def test_keep_outside_is_refused(keep):
    assert str(keep) in refused(r"'mask\.keep' is .*\(0, 1\]", mask={"keep": keep})


def test_two_tasks_of_one_name():
    refused("two tasks are named 'counts'", tasks=["demo:counts", "demo:counts"])
    refused("two tasks are named 'counts'", control=["demo:counts"])


def test_no_tasks_and_unknown_recipes():
    refused("'tasks' is empty", tasks=[])
    refused(r"'demo:count' does not exist \(did you mean 'demo:counts'\?\)", tasks=["demo:count"])


def test_values_of_the_wrong_kind():
    refused(r"'train\.lr' is 'fast'", train={"lr": "fast"})
    refused(r"'mask\.strategy' is 'best'", mask={"strategy": "best"})
    refused("wanted low < high", search={"low": 1.0, "high": 0.5})
    refused(r"has no \{\}", tasks=[{"name": "a", "data": "x.csv", "prompts": ["a photo"]}])
    refused(r"'train\.lr' is 0", tasks=[{"name": "a", "data": "x.csv", "train": {"lr": 0}}])


def test_several_mistakes_are_all_told():
    with pytest.raises(SpecError) as caught:
        make_spec({**GOOD, "trian": {}, "mask": {"keep": 2}})
    assert "trian" in str(caught.value) and "mask.keep" in str(caught.value)


def test_a_task_may_train_differently():
    spec = make_spec({**GOOD, "train": {"steps": 7}, "tasks": [{"recipe": "demo:counts", "train": {"lr": 0.5}}]})
    assert spec.train_for(spec.tasks[0], 100) == Train(steps=7, lr=0.5)
    by_epochs = make_spec({**GOOD, "train": {"epochs": 3, "batch_size": 32}, "tasks": ["demo:counts", {"recipe": "demo:pointers", "train": {"steps": 9}}]})  # fmt: skip
    assert [by_epochs.train_for(t, 100).steps for t in by_epochs.tasks] == [
        3 * 3,
        9,
    ]  # 100 examples are three whole batches


def test_tasks_may_be_objects():
    assert make_spec({**GOOD, "tasks": [Task(name="mine", data="x.csv")]}).tasks[0].name == "mine"


def test_yaml_goes_in_and_out(tmp_path):
    spec = make_spec({**GOOD, "train": {"steps": 7}, "control": ["demo:coloured_shapes"]})
    path = tmp_path / "spec.yaml"
    path.write_text(spec.to_yaml())
    assert load_spec(path) == spec
    assert Spec.model_validate(spec.model_dump(mode="json")) == spec


def test_files_that_are_no_specs(tmp_path):
    path = tmp_path / "spec.yaml"
    for content, match in (
        (None, "does not exist"),
        ("a: [", "is not YAML"),
        ("- 1", "holds list"),
        ("", "holds NoneType"),
    ):
        if content is not None:
            path.write_text(content)
        with pytest.raises(SpecError, match=match):
            load_spec(path)


def test_data_beside_the_spec_are_found(tmp_path):
    (tmp_path / "rows.csv").write_text("file,side\n")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**GOOD, "tasks": [{"name": "a", "data": "rows.csv"}]}))
    assert load_spec(tmp_path / "spec.yaml").tasks[0].data == str(tmp_path / "rows.csv")


def test_every_setting_has_a_sentence():
    for section in (Spec, *(f.annotation for f in Spec.model_fields.values() if hasattr(f.annotation, "model_fields"))):
        for name, field in section.model_fields.items():
            assert section is Spec or section is Task or field.description, f"{section.__name__}.{name}"


def test_the_paper_is_a_preset_and_own_words_win():
    values = {"model": "demo", "tasks": ["demo:counts"], "output": "x", "preset": "paper"}
    spec = make_spec({**values, "mask": {"keep": 0.05}, "search": {"high": 2.0}})
    assert (spec.mask.keep, spec.search.high, spec.search.method, spec.calibration.stable) == (0.05, 2.0, "grid", None)
    assert [m.method for m in spec.search.merge.tried] == ["linear"]
    both = make_spec({**values, "search": {"merge": {"method": "auto"}}}).search.merge
    assert [m.method for m in both.tried] == ["linear", "consensus"]
    with pytest.raises(SpecError, match="preset 'papers' does not exist.*'paper'"):
        make_spec({**values, "preset": "papers"})


def test_the_paper_takes_logits_and_sums_but_of_whole_answers():
    task = {"name": "a", "data": "a.csv"}
    values = {"model": "hf:t5-small", "tasks": [task, {**task, "name": "b", "ranking": "mean"}], "output": "x"}
    paper = make_spec({**values, "control": [{**task, "name": "c"}], "preset": "paper"})
    assert make_spec({"model": "demo", "tasks": [task], "output": "x", "preset": "paper"}).tasks[0].ranking == "mean"
    assert paper.calibration.score == "logit" and paper.control[0].ranking == "sum"
    assert [task.ranking for task in paper.tasks] == ["sum", "mean"] and make_spec(values).tasks[0].ranking == "mean"
    for own in ({"score": "log_prob"}, {"labels": "tokens"}):
        assert make_spec({**values, "preset": "paper", "calibration": own}).calibration.score == "log_prob"
    with pytest.raises(SpecError, match=r"calibration.score is 'logit' with calibration.labels 'tokens'"):
        make_spec({**values, "preset": "paper", "calibration": {"labels": "tokens", "score": "logit"}})


def test_a_later_setting_at_its_default_addresses_what_it_did_before():
    assert "schedule" not in Train().keyed() and Train(schedule="constant").keyed()["schedule"] == "constant"


def test_a_spec_adds_tasks_to_those_of_the_one_that_it_extends(tmp_path):
    (tmp_path / "d.csv").write_text("text,label\n")
    (tmp_path / "a.yaml").write_text("model: demo\noutput: x\ntasks: demo:counts\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nmore_tasks: [demo:pointers, {name: d, data: d.csv}]\n")
    (tmp_path / "c.yaml").write_text("extends: b.yaml\nmore_tasks: demo:lighting\n")
    found = load_spec(tmp_path / "c.yaml").tasks
    assert [task.name for task in found] == ["counts", "pointers", "d", "lighting"] and found[2].data == str(tmp_path / "d.csv")
    with pytest.raises(SpecError, match=r"spec key 'more_tasks' does not exist"):
        make_spec({"model": "demo", "output": "x", "tasks": "demo:counts", "more_tasks": "demo:lighting"})


def test_keys_of_other_libraries_are_answered_with_the_name_here():
    spec = {"model": "demo", "tasks": ["demo:counts"], "output": "x"}
    for place, key, wanted in (
        ("train", "learning_rate", "train.lr"), ("train", "num_train_epochs", "train.epochs"), ("train", "warmup_ratio", "train.warmup_steps"),
        (None, "learning_rate", "train.lr"), (None, "output_dir", "output"), (None, "max_steps", "train.steps"),
    ):  # fmt: skip
        given = {**spec, **({place: {key: 1}} if place else {key: 1})}
        with pytest.raises(SpecError, match=rf"'{(place + '.') if place else ''}{key}' does not exist; here it is called '{wanted}'"):
            make_spec(given)
    with pytest.raises(SpecError, match="'task t.text_column' does not exist; here it is called 'input'"):
        make_spec({**spec, "tasks": [{"name": "t", "data": "x.csv", "text_column": "words"}]})


def test_what_a_key_is_called_here_exists():
    for known in ELSEWHERE.values():
        model, fields = Spec, known.split(".")
        for field in fields[:-1]:
            model = model.model_fields[field].annotation
        assert fields[-1] in model.model_fields or fields[-1] in Task.model_fields


def test_one_prompt_need_be_no_list():
    assert Task(name="t", data="x", prompts="a photo of a {}").prompts == ("a photo of a {}",)
    with pytest.raises(SpecError, match="prompts"):
        make_spec({"model": "demo", "output": "x", "tasks": [{"name": "t", "data": "x", "prompts": "no slot"}]})


def test_nothing_that_is_given_beside_a_spec_is_dropped(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("model: demo\ntasks: [demo:counts]\noutput: x\nunknown: 1\n")
    for given in ({"output": "elsewhere"}, {"train": {"lr": 1.0}}, {"tasks": ["demo:pointers"]}, {"model": "hf:x"}):
        with pytest.raises(SpecError, match=f"given a spec and beside it {next(iter(given))}; wanted one or the other"):
            talos_ray.edit(spec=path, **given)
    with pytest.raises(SpecError, match="'unknown' does not exist"):  # it is read as a spec
        talos_ray.edit(str(path))


def test_what_yaml_reads_as_nothing_and_what_is_no_list():
    task = {"name": "x", "data": "demo:counts"}
    refused("missing_words.1' is null; .*quotation marks, like \"null\"", tasks=[{**task, "missing_words": ["N/A", None]}])
    refused("missing_words' is 'N/A'; wanted a list", tasks=[{**task, "missing_words": "N/A"}])
    refused("classes' is {0: 'neg', 1: 'pos'}; wanted a list", tasks=[{**task, "classes": {0: "neg", 1: "pos"}}])
    refused("' ' is no path", tasks=[{**task, "data": " "}])
    refused("'' is no path", tasks=[{**task, "data": ""}])
