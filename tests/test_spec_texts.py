"""Specs are read as they were written: encodings, keys, braces, and words that YAML takes for something else."""

import os

import pytest

from talos_ray import SpecError
from talos_ray.config import filled
from talos_ray.data.folders import files_below
from talos_ray.spec import load_spec, make_spec

SPEC = "model: demo\ntasks: [{name: pets, data: pets, classes: [é, b]}]\noutput: out\n"


def refused(path, text: bytes | str, match: str) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecError, match=match) as caught:
        load_spec(path)
    assert len(str(caught.value).splitlines()) == 1


def test_encodings(tmp_path):
    path = tmp_path / "spec.yaml"
    for name in ("utf-8", "utf-8-sig"):
        path.write_bytes(SPEC.encode(name))
        assert load_spec(path).tasks[0].classes == ("é", "b")
    refused(path, SPEC.encode("latin-1"), "line 2: byte 0xe9 is not UTF-8; wanted UTF-8")
    refused(path, SPEC.encode("utf-16"), "is UTF-16; wanted UTF-8")


def test_keys_that_stand_twice_and_words_that_want_quotes(tmp_path):
    path = tmp_path / "spec.yaml"
    refused(path, SPEC + "seed: 1\noutput: other\n", "line 5: key 'output' stands there twice")
    refused(path, "model: demo\ntasks: [{name: a, name: b, data: x}]\noutput: o\n", "line 2: key 'name' stands there twice")
    for given, fix in (
        ("yes", '"yes" for yes'),
        ("7", '"7" for 7'),
        ("1.5", '"1.5"'),
        ("2024-01-02", '"2024-01-02"'),
    ):
        refused(path, SPEC.replace("é", given), f"wanted a text: .*quotation marks, like {fix}")


@pytest.mark.parametrize("given", ["010", "-010", "1:30", "1:30.5", "0_1"])
def test_numbers_that_yaml_reads_by_other_than_tens(tmp_path, given):
    """010 steps are not 8, and 1:30 are not 90."""
    path = tmp_path / "spec.yaml"
    fix = f'"{given}" in quotation marks, if it is a text, and else digits alone'
    refused(path, SPEC.replace("é", given), f"line 2: YAML reads {given} by eights or sixties.*{fix}")
    refused(path, SPEC + f"train: {{steps: {given}}}\n", f"line 4: YAML reads {given}")
    path.write_text(SPEC.replace("é", f'"{given}"') + "train: {steps: 1_000, lr: 0.10}\nseed: 0\n")
    spec = load_spec(path)
    assert spec.tasks[0].classes[0] == given
    assert (spec.train.steps, spec.train.lr, spec.seed) == (1000, 0.1, 0)


def test_braces_in_prompts():
    def prompts(*given: str) -> tuple[str, ...]:
        task = {"name": "a", "data": "x", "prompts": given}
        return make_spec({"model": "demo", "tasks": [task], "output": "o"}).tasks[0].prompts

    for prompt, text in (
        ("a {}.", "a cat."),
        ('{"label": "{}"}', '{"label": "cat"}'),
        ("{} in {city}", "cat in {city}"),
        ("{}}", "cat}"),
    ):
        assert filled(prompts(prompt)[0], "cat") == text
    assert filled("a {}", "{}") == "a {}"
    for prompt, match in (("none", "has no {}"), ("{} or {}", "has {} 2 times")):
        with pytest.raises(SpecError, match=match):
            prompts(prompt)


@pytest.mark.parametrize(
    ("key", "match"),
    [
        (r'label: "\uD800"', r"task pets\.label: .*half a character.*wanted a text"),
        (r'classes: [a, "\uD800"]', r"classes: .*half a character"),
        (r'train: {lr: true}', r"train\.lr' is True; wanted a number, and no yes or no"),
        ("stream: true", r"stream' is True; wanted a number, and no yes or no"),
        ("validation_share: yes", r"validation_share' is True; wanted a number"),
        ("prompts: []", r"prompts: an empty list; wanted at least one template"),
        ('input: "{text:>1000000000000}"', "wanted a width of at most 999"),
        ('input: "{text:{n}}"', "wanted a width of at most 999"),
        ('choices: ["{a:01000}"]', "wanted a width of at most 999"),
    ],
)
def test_values_that_would_be_taken_for_others(tmp_path, key, match):
    text = f"model: demo\noutput: out\ntasks:\n  - name: pets\n    data: pets\n    {key}\n"
    refused(tmp_path / "spec.yaml", text, match)


def test_numbers_and_switches_that_are_right(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.replace("é", "'01'") + "train: {steps: 3, gradient_checkpointing: true}\nsearch: {lr: [0.1, 1]}\n")
    spec = load_spec(path)
    assert (spec.train.steps, spec.train.gradient_checkpointing, spec.search.lr) == (3, True, (0.1, 1.0))
    task = {"name": "a", "data": "x", "kind": "text", "input": "{price:>8.2f} {x!r:03}"}
    assert make_spec({"model": "demo", "tasks": [task], "output": "o"}).tasks[0].input == task["input"]
    refused(path, SPEC + "train: {steps: true}\n", "'train.steps' is True; wanted a number, and no yes or no")
    refused(path, SPEC + "search: {lr: [0.1, true]}\n", "wanted a number, and no yes or no")


def test_a_pipe_is_called_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(SpecError, match="is a folder, a pipe or a device; wanted a file"):
            load_spec(path)
    with pytest.raises(SpecError, match="pipe' is a pipe, a socket or a device; wanted a file"):
        list(files_below(tmp_path))


def test_long_values_are_shown_by_their_ends():
    told = str(SpecError(f"task 'x': label {'y' * 5000!r} is wrong\nshort; correct it"))
    first, second = told.splitlines()
    assert first.startswith("task 'x': label 'yyy") and first.endswith("yyy' is wrong") and "(5,027 characters)" in first
    assert len(first) < 1000 and second == "short; correct it"
    assert str(SpecError(told)) == told  # as it travels from process to process
    assert str(SpecError("x" * 1000)) == "x" * 1000
