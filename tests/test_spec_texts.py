"""Specs are read as they were written: encodings, keys, braces, and words that YAML takes for something else."""

import pytest

from talos_ray import SpecError
from talos_ray.config import filled
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
    for given, fix in (("yes", '"yes"'), ("7", '"7"'), ("1.5", '"1.5"'), ("2024-01-02", '"2024-01-02"')):
        refused(path, SPEC.replace("é", given), f"wanted a text: .*quotation marks, like {fix}")


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
