"""A version's file: read as typed objects, and written again byte by byte as it was."""

import json
import re
from pathlib import Path

import pytest
from recorded import made
from records import PLAIN, old_run

import talos_ray
from talos_ray import CorruptError
from talos_ray.storage import version as format_of
from talos_ray.storage.files import as_json
from talos_ray.storage.run_folder import RunFolder
from talos_ray.storage.schema import Stored
from talos_ray.storage.version import Version

FORMATS = Path(__file__).parents[2] / "docs/formats.md"
SCORE = {"value": 0.5, "n": 4, "low": 0, "high": 1}
NEWEST = {
    **{"version": 3, "kind": "removal", "model": "m", "base": "b", "mask": "k", "created": "now", "key": "x", "rows": None},
    **{"coefficients": {"t": 1, "u": -0.0}, "deltas": {"t": "d"}, "targets": ["t"], "others": [], "controls": ["c"]},
    "scores": {"t": {"base": SCORE, "merged": SCORE, "merged_later": SCORE}, "c": {"base": SCORE, "merged": SCORE}},
    "summary": {"zero_shot": 0.5, "control_kept": {"c": 1}, "intervals": {"merged": [0, 1]}, "of a later release": None},
    "merge": {"method": "ties", "density": 1, "of a later release": [1, {"x": None}]},
    "search": {"candidates": [{"objective": 1, "coefficients": {"t": 0}}], "curve": [[0, 0.25]], "later": {"y": 1e-12}},
    "gate": {"result": "pass", "checks": [], "settings": {"strict": False, "later": 1}},
    "baseline": None,
    "of a later release": {"a": [1, 2.0, "é"]},
}  # fmt: skip


def again(path: Path) -> bytes:
    return as_json(Version.read(str(path), json.loads(path.read_bytes()), int(path.stem)).as_dict())


def test_what_earlier_releases_and_this_one_wrote_is_written_again_byte_by_byte(tmp_path):
    old = old_run(tmp_path)
    new = Path(made(tmp_path, "bert").path)
    files = [*old.glob("versions/*.json"), *new.glob("versions/*.json")]
    assert len(files) == 5
    for path in files:
        assert again(path) == path.read_bytes()


def test_nothing_that_a_later_release_writes_is_lost():
    version = Version.read("v", NEWEST, 3)
    assert as_json(version.as_dict()) == as_json(NEWEST)
    more = version.with_fields(kind="negation", forgotten=["t"])
    assert as_json(more.as_dict()) == as_json({**NEWEST, "kind": "negation", "forgotten": ["t"]})
    assert list(version.scores["t"].measured()) == ["base", "merged", "merged_later"]
    assert version.scores["t"].measured()["merged_later"].n == 4


def test_a_version_tells_what_it_is_made_of():
    version = Version.read("v", NEWEST, 3)
    assert [version.kind_of(t) for t in ("t", "c", "u")] == ["target", "control", "other"]
    assert version.holds("t") and not version.holds("u") and version.passes
    assert (version.coefficient_of("t"), version.coefficient_of("c"), version.rows_by_group) == ("1.00", "", False)
    forgot = version.with_fields(forgotten=["t"], coefficients={"t@0": 0.5, "t@1": 1})
    assert forgot.kind_of("t") == "forgotten" and not forgot.holds("t") and forgot.rows_by_group
    assert forgot.coefficient_of("t") == "0 0.50, 1 1.00"
    with pytest.raises(ValueError, match="frozen"):
        version.kind = "addition"


def test_a_script_may_try_another_value_and_nothing_else_can_be_there():
    version = Version.read("v", NEWEST, 3)
    version["forgotten"] = ["t"]
    version["later"] = 1
    assert version.kind_of("t") == "forgotten" and version["later"] == 1
    assert as_json(version.as_dict()) == as_json({**NEWEST, "forgotten": ["t"], "later": 1})
    with pytest.raises(CorruptError, match="coefficients"):
        version["coefficients"] = {"t": "much"}
    assert version.forgotten == ["t"]


def test_what_an_earlier_release_did_not_write_has_a_default():
    assert PLAIN.as_dict() == {"model": "m", "coefficients": {}}
    assert (PLAIN.how.method, PLAIN.others, PLAIN.forgotten, PLAIN.looks, PLAIN.checks) == ("linear", [], [], {}, [])
    assert PLAIN.search.candidates == [] and PLAIN.search.disentanglement.together == {} and PLAIN.passes


@pytest.mark.parametrize(
    ("field", "wrong", "told"),
    [
        ("deltas", None, "field 'deltas' is None; wanted a valid dictionary"),
        ("scores", {"t": {"base": SCORE}}, "field 'scores.t.merged' is"),
        ("scores", {"t": {"base": SCORE, "merged": SCORE, "later": 1}}, "field 'scores.t.later' is 1"),
        ("summary", {"merged": "0.5"}, "field 'summary.merged' is '0.5'; wanted a valid number"),
        ("looks", {"t": -1}, "field 'looks.t' is -1; wanted greater than or equal to 0"),
        ("version", 4, "field 'version' is 4; wanted 3"),
        ("version", None, "field 'version' is None; wanted 3"),
    ],
)
def test_a_field_that_does_not_fit_is_named(field, wrong, told):
    with pytest.raises(CorruptError, match=re.escape(f"v: {told}") + ".*; restore it from a copy$"):
        Version.read("v", {**NEWEST, field: wrong}, 3)


def test_another_version_is_not_taken_for_one(tmp_path):
    folder = RunFolder(str(tmp_path))
    number = folder.add_version("version", lambda n: (PLAIN, {}))
    assert folder.load_version(number) == PLAIN.with_fields(version=number) != PLAIN


def test_the_formats_page_names_every_field():
    _, _, section = FORMATS.read_text().partition("\n## A version\n")
    named = set(re.findall(r"`([a-z_]+)`", section.partition("\n## ")[0]))
    models = [m for m in vars(format_of).values() if isinstance(m, type) and issubclass(m, Stored)]
    fields = {f.alias or name for m in models for name, f in m.model_fields.items()}
    assert len(fields) > 80 and sorted(fields - named) == []


def test_a_version_can_still_be_asked_as_the_dict_that_it_was(tmp_path):
    run = talos_ray.open_run(str(old_run(tmp_path)))
    version = run.versions[1]
    stored = json.loads(Path(run.path, "versions/0001.json").read_text())
    assert {field: version[field] for field in stored} == stored and all(field in version for field in stored)
    assert version.get("gone") is None and version.get("gone", 3) == 3 and "gone" not in version
    with pytest.raises(KeyError):
        version["gone"]
    content = {k: v for k, v in stored.items() if k != "version"}
    number = run.folder.add_version("version", lambda n: (content, {}))
    assert run.folder.load_version(number).as_dict() == {**stored, "version": number}
