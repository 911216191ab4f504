"""A hundred specs that are wrong: each is told in a line that names the place and what is wanted, at once."""

import time

import pytest

from talos_ray import SpecError
from talos_ray.spec import load_spec
from talos_ray.yaml_file import DEEPEST

GOOD = "model: demo\ntasks: [demo:pointers]\noutput: run\n"
TASK = "model: demo\noutput: run\ntasks: [{name: a, data: d.csv, %s}]\n"


def nested(opening: str, closing: str, times: int) -> str:
    return f"{GOOD}seed: {opening * times}1{closing * times}\n"


LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(9))

BROKEN = [
    # what is no file of keys and values
    "", "- 1", "just words", "7", "null", "model: [", "model: 'demo", "a: b: c", "\tmodel: demo", "model: demo\n tasks: x", "%YAML 9.9\n---\na: 1",
    "model: !!python/object/apply:os.system ['true']", "model: !!python/name:os.system", "model: !unknown x", "? [1, 2]\n: 3", "--- a\n--- b",
    b"\xff\xfe\x00", b"model: caf\xe9\n", b"model: a\x00b\n", "model: a\x1b[31mb\n",
    GOOD + "model: demo\n", "model: demo\noutput: run\ntasks: [{name: a, data: b, name: c}]\n", "model: *nowhere\n",
    GOOD + "seed: " + "9" * 5000, GOOD + "tracker: 2026-13-45\n", GOOD + "seed: 0x\n", GOOD + "seed: 1" + "0" * 30, GOOD + "seed: 2020-01-01\n",
    nested("[", "]", DEEPEST + 1), nested("[", "]", 1500), nested("{a: ", "}", 3000), GOOD + LAUGHS, GOOD + "a: &a [*a]\n", GOOD + "a: &a {b: *a}\n",
    GOOD + "a: &a x\nb: [" + ", ".join(["*a"] * 200) + "]\n", GOOD + "# " + "x" * (1 << 20),
    # tasks
    "model: demo\noutput: run\n", "model: demo\noutput: run\ntasks:\n", "model: demo\noutput: run\ntasks: []\n", "model: demo\noutput: run\ntasks: [1]\n",
    "model: demo\noutput: run\ntasks:\n-\n", "model: demo\noutput: run\ntasks: 7\n", "model: demo\noutput: run\ntasks: true\n",
    "model: demo\noutput: run\ntasks: [[demo:pointers]]\n", "model: demo\noutput: run\ntasks: {a: b}\n", "model: demo\noutput: run\ntasks: demo:pionters\n",
    "model: demo\noutput: run\ntasks: [demo:pointers, demo:pointers]\n", "model: demo\noutput: run\ntasks: [{recipe: 5}]\n",
    "model: demo\noutput: run\ntasks: [{recipe: [a]}]\n", "model: demo\noutput: run\ntasks: [{recipe: {}}]\n", "model: demo\noutput: run\ntasks: [{}]\n",
    "model: demo\noutput: run\ntasks: [{name: a}]\n", "model: demo\noutput: run\ntasks: [{data: a}]\n", "model: demo\noutput: run\ntasks: [{name: ../a, data: b}]\n",
    "model: demo\noutput: run\ntasks: [{name: '', data: b}]\n", "model: demo\noutput: run\ntasks: [{name: [a], data: b}]\n",
    'model: demo\noutput: run\ntasks: [{name: "a\\nb", data: b}]\n', "model: demo\noutput: run\ntasks: [{name: %s, data: b}]\n" % ("n" * 200),
    "model: demo\noutput: run\ntasks: [{name: a, data: %s}]\n" % ("d" * 5000), 'model: demo\noutput: run\ntasks: [{name: a, data: "a\\0b"}]\n',
    "model: demo\noutput: run\ntasks: [{name: a, data: ~nosuchuser/x}]\n", "model: demo\noutput: run\ntasks: [{name: a, data: 7}]\n",
    "model: demo\noutput: run\ntasks: [{name: a, data: 's3://k:s@b/x'}]\n", TASK % "prompts: none", TASK % "prompts: [no slot]", TASK % "prompts: ['{} {}']",
    TASK % "prompts: ['{']", TASK % "prompts: ['{} or {}']", TASK % "prompts: [7]", TASK % "kind: sound",
    TASK % "classes: 7", TASK % "train: 3", TASK % "train: {stpes: 3}", TASK % "train: {lr: fast}", TASK % "stream: 0", TASK % "head: tail", TASK % "1: 2",
    GOOD + "control: true\n", GOOD + "control: 5\n", GOOD + "control: [null]\n", GOOD + "control: [demo:pointers]\n",
    # the rest
    "tasks: [demo:pointers]\noutput: run\n", "model: 5\ntasks: [demo:pointers]\noutput: run\n", "model: null\ntasks: [demo:pointers]\noutput: run\n",
    "model: [demo]\ntasks: [demo:pointers]\noutput: run\n", 'model: "hf:~nosuchuser/x"\ntasks: [demo:pointers]\noutput: run\n',
    "model: demo\ntasks: [demo:pointers]\n", "model: demo\ntasks: [demo:pointers]\noutput: [a]\n", "model: demo\ntasks: [demo:pointers]\noutput: 's3://k:s@b/x'\n",
    GOOD + "preset: [x]\n", GOOD + "preset: papre\n", GOOD + "preset: 3\n", GOOD + "preset: paper\nmask: 3\n", GOOD + "preset: paper\nsearch: [1]\n",
    GOOD + "mask: 3\n", GOOD + "mask: {keep: .nan}\n", GOOD + "mask: {keep: -1}\n", GOOD + "mask: {keep: yes}\n", GOOD + "mask: {stratgy: random}\n",
    GOOD + "train: {lr: .inf}\n", GOOD + "train: {lr: 0}\n", GOOD + "train: {steps: 1.5}\n", GOOD + "train: {loss: completion, label_noise: 0.1}\n",
    GOOD + "search: {low: 1, high: 0}\n", GOOD + "search: {high: .inf}\n", GOOD + "search: {merge: {groups: {a: '('}}}\n",
    GOOD + "search: {merge: {groups: {a: 'x{99999999999999}'}}}\n", GOOD + "search: {merge: {groups: 1}}\n", GOOD + "gate: {control_keep: 2}\n",
    GOOD + "gate: {target_gain: .nan}\n", GOOD + "gate: {strict: perhaps}\n", GOOD + "cluster: {labels: [a]}\n", GOOD + "extends: nowhere.yaml\n",
    GOOD + "extends: [a]\n", GOOD + "extends: spec.yaml\n", GOOD + "nonsense: 1\n", GOOD + "1: 2\n", GOOD + "? [a]\n: 1\n", GOOD + '"a\\nb\\e[31m": 1\n',
]  # fmt: skip


# Where more than one thing is wrong, each has its line.
MISTAKES = {
    "model: demo\noutput: run\ntasks: {a: b}\n": 3,
    "model: demo\noutput: run\ntasks: [{}]\n": 2,
}


def test_there_are_a_hundred_and_none_twice():
    assert len(BROKEN) >= 100 and len({b if isinstance(b, bytes) else b.encode() for b in BROKEN}) == len(BROKEN)


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_broken_spec_is_told_in_a_line(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, content = tmp_path / "spec.yaml", BROKEN[number]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    with pytest.raises(SpecError) as told:
        load_spec("spec.yaml")
    said = str(told.value)
    assert time.process_time() - started < 10  # it does not hang; the rest of the tests may have left a lot to collect
    lines = said.splitlines()
    assert len(lines) == MISTAKES.get(content, 1), said
    for line in lines:
        assert line.isprintable() and len(line) < 700
        assert any(fix in line for fix in ("wanted", "did you mean", "mend that line", "add it", "known")), line


def test_what_is_allowed_still_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(
        "\ufeffmodel: demo\ntasks: [demo:pointers]\noutput: run\ntrain: &t {steps: 3}\n"
    )
    (tmp_path / "spec.yaml").write_text("extends: base.yaml\ntrain: {<<: {lr: 1}, steps: 4}\n")
    spec = load_spec("spec.yaml")
    assert (spec.train.steps, spec.train.lr, spec.tasks[0].name) == (4, 1.0, "pointers")
