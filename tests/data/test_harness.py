"""Tasks of the lm-evaluation-harness: what they ask, and that the harness itself scores a model's answers alike."""

import json
import logging

import pytest
import torch
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from recorded import recorded_run
from texts import save_model, write_texts

from talos_ray import SpecError
from talos_ray.data.harness import OWN_TASKS
from talos_ray.models import load_model
from talos_ray.spec import make_spec, resolve_task
from talos_ray.tasks import load_task

WHERE = ["by us", "not far from here", "near the harbour", "seen again"]


def docs(n: int, start: int = 0) -> list[dict]:
    """Questions with three answers each, of which the n-th is right."""
    found = []
    for i in range(start, start + n):
        options = [WHERE[i % 4], WHERE[(i + 1) % 4], WHERE[(i + 2) % 4]]
        found.append({"question": f"the old horse {'was ' * (1 + i)}seen", "options": options, "answer": i % 3})
    return found


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a task of the harness, and what it reads, into a folder of the user's own."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    monkeypatch.setenv(OWN_TASKS, str(tasks))
    monkeypatch.setenv("TALOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    logging.disable(logging.WARNING)  # the harness tells much of what it does

    def written(splits: dict[str, list[dict]], **more) -> str:
        files = {}
        for split, rows in splits.items():
            files[split] = str(tmp_path / f"{split}.jsonl")
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        names = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
        task = {
            "task": "horses",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "output_type": "multiple_choice",
            "description": "where was it ? ",
            "doc_to_text": "{{question}} ",  # the space is the answer's, as the harness cuts it
            "target_delimiter": "",
            "doc_to_choice": "options",
            "doc_to_target": "answer",
            **{names[split]: split for split in splits},
            **more,
        }
        (tasks / "horses.yaml").write_text(yaml.safe_dump(task))
        return str(tasks)

    yield written
    logging.disable(logging.NOTSET)


def test_a_task_is_its_texts_choices_and_right_answers(write):
    write({"train": docs(8), "validation": docs(4, 8), "test": docs(6, 12)})
    task = resolve_task("lm_eval:horses", text=True)
    assert (task.name, task.data, task.choices) == (
        "horses",
        "lm_eval:horses",
        ("{choice_0}", "{choice_1}", "{choice_2}"),
    )
    data = load_task(task, 0)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [8, 4, 6] and data.notes == ()
    assert data.test.labels.tolist() == [i % 3 for i in range(12, 18)]
    asked = data.test.rows[0][data.test.column].split("\x1f")
    assert asked == [
        f"where was it ? the old horse{' was' * 13} seen",
        "by us",
        "not far from here",
        "near the harbour",
    ]


def test_a_spec_names_it_as_a_control_task(write, tmp_path):
    write({"train": docs(8), "test": docs(6, 12)})
    spec = make_spec(
        {"model": "hf:gpt2", "tasks": [{"name": "x", "data": "x.csv"}], "control": ["lm_eval:horses"], "output": "run"}
    )
    assert spec.control == (resolve_task({"recipe": "lm_eval:horses"}, text=True),)
    named = resolve_task({"name": "mine", "data": "lm_eval:horses"}, text=True)
    assert named == spec.control[0].model_copy(update={"name": "mine"})
    again = make_spec({**spec.model_dump(mode="json"), "output": "other"})  # as a run's own record has it
    assert again.control == spec.control


@torch.no_grad()
def test_the_harness_scores_the_same_answers_alike(write, tmp_path):
    """A tiny model is asked by the harness, and by us: log-probability by log-probability."""
    tasks = write({"train": docs(8), "test": docs(6, 12)})
    family = load_model(save_model(tmp_path / "model", "gpt2"))
    data = load_task(resolve_task("lm_eval:horses", text=True), 0)
    inputs = family.preprocess(data.test.rows[:][data.test.column])
    text, said = family._parted(inputs, None)
    sums, _ = family._likelihood(text, said)

    theirs = HFLM(pretrained=family.module, tokenizer=family.tokenizer, batch_size=1, device="cpu")
    manager = TaskManager(include_path=tasks, include_defaults=False)
    found = simple_evaluate(model=theirs, tasks=["horses"], task_manager=manager, log_samples=True, bootstrap_iters=0)
    samples = sorted(found["samples"]["horses"], key=lambda sample: sample["doc_id"])
    logs = torch.tensor([[likelihood for likelihood, _ in sample["filtered_resps"]] for sample in samples])
    assert logs.shape == (6, 3) and logs.unique().numel() > 10
    assert torch.allclose(sums, logs, atol=1e-4)
    right = sums.argmax(1) == data.test.labels
    assert float(right.float().mean()) == pytest.approx(found["results"]["horses"]["acc,none"])


@torch.no_grad()
def test_a_run_asks_it_like_any_control_task(write, tmp_path):
    write({"train": docs(8), "validation": docs(4, 8), "test": docs(6, 12)})
    target = {**write_texts(tmp_path, "animals", 40), "kind": "text", "input": "text", "prompts": ["{}"]}
    run = recorded_run(tmp_path / "run", save_model(tmp_path / "model", "gpt2"), [target], ["lm_eval:horses"])
    family = run.model(1)
    recorded = run.folder.load_answers(1).predicted["horses"]
    data = load_task(run.spec.control[0], 0)
    head = family.head(data.phrases, data.task.prompts)
    asked = family.preprocess(data.test.rows[:][data.test.column])
    assert torch.equal(family.logits(asked, head).argmax(1).int(), recorded)
    rows = [{"text": "the old horse was", **{f"choice_{i}": WHERE[i] for i in range(3)}}]
    assert run.predict(rows, task="horses").labels[0] in run.classes["horses"]
    run.export(tmp_path / "out", delta_only=True)
    assert (
        "lm_eval:horses" not in (tmp_path / "out/README.md").read_text().split("---")[1]
    )  # it is no data set of the Hub


def test_what_is_evaluated_is_test_data_and_the_rest_is_trained_on(write):
    write({"validation": docs(9)})
    alone = load_task(resolve_task("lm_eval:horses", text=True), 0)
    assert len(alone.train) + len(alone.validation) + len(alone.test) == 9
    assert any("one split only" in note for note in alone.notes)
    write({"validation": docs(12), "test": docs(6, 12)}, task="ponies")
    both = load_task(resolve_task("lm_eval:ponies", text=True), 0)
    assert len(both.test) == 6 and len(both.train) + len(both.validation) == 12


def test_rows_of_other_choices_are_left_out_and_counted(write):
    odd = {"question": "it is", "options": ["here", "there"], "answer": 0}
    write({"train": [*docs(8), odd], "test": docs(6, 12)})
    data = load_task(resolve_task("lm_eval:horses", text=True), 0)
    assert len(data.train) + len(data.validation) == 8
    assert any("1 of 15 rows have another number of choices than 3 and are left out" in note for note in data.notes)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {"output_type": "generate_until", "doc_to_target": "{{options[0]}}"},
            "is one of generate until; wanted one of multiple choice",
        ),
        (
            {"doc_to_target": "{{ 7 if answer == 2 else answer }}"},
            "row 2 of split 'train' has 7 for its right answer; wanted one of its 3 choices",
        ),
        ({"target_delimiter": "\n", "doc_to_text": "question"}, r"goes on with '\\nby us'; wanted a space and a text"),
        (
            {"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}},
            "cannot be loaded by the harness: .*nowhere.jsonl",
        ),
    ],
)
def test_what_cannot_be_ranked_is_refused(write, more, told):
    write({"test": docs(6, 12)}, **more)
    with pytest.raises(SpecError, match=f"task 'lm_eval:horses'.*{told}"):
        resolve_task("lm_eval:horses", text=True)


@pytest.mark.slow  # the harness reads all of its own tasks first
def test_a_slip_is_told_with_the_nearest_name(write):
    write({"test": docs(6, 12)})
    with pytest.raises(SpecError, match=r"none of that name \(did you mean 'hellaswag'\?\)"):
        resolve_task("lm_eval:hellaswg", text=True)
