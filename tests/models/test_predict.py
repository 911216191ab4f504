"""What a version answers on new inputs: as it was recorded, by name, in order; with one edit alone; or nothing but a
line that says why."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from images import write_images
from PIL import Image
from recorded import made, recorded_run, test_inputs
from texts import save_model
from typer.testing import CliRunner

import talos_ray
from talos_ray import SpecError, TalosError, cli
from talos_ray.core.layout import fingerprint
from talos_ray.models import base_tensors, load_model
from talos_ray.tasks import load_task
from talos_ray.trust.predict import BATCH

FAMILIES = ("demo", "siglip", "bert", "classifier bfloat16", "t5", "gpt2", "python")
MORE = ("clip", "classifier", "llama", "qwen3", "siglip bfloat16", "t5 bfloat16", "llama bfloat16")


@pytest.fixture(autouse=True, scope="module")
def allowed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALOS_ALLOW_CODE", ",".join(filter(None, [os.environ.get("TALOS_ALLOW_CODE"), "test_families"])))
        yield


@pytest.mark.parametrize("kind", (*FAMILIES, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE)))
def test_answers_are_those_that_were_recorded(kind, tmp_path):
    run = made(tmp_path, kind)
    for task in run._tasks:
        inputs, labels = test_inputs(run, task)
        for version in (0, 1):
            recorded = run.folder.load_answers(version)
            found = run.predict(inputs, task, version, top_k=2)
            assert torch.equal(found.best[:, 0].int(), recorded.predicted[task])
            assert torch.equal(found.best[:, 0] == labels, recorded.right(task))
            assert (
                torch.allclose(found.scores.sum(1), torch.ones(len(inputs))) and (found.scores.diff(dim=1) <= 0).all()
            )
    changed = [
        (run.folder.load_answers(0).predicted[t] != run.folder.load_answers(1).predicted[t]).any() for t in run._tasks
    ]
    assert any(changed)  # the edit is one


def test_batches_do_not_show(tmp_path):
    run = made(tmp_path, "bert", n=1400)
    inputs, _ = test_inputs(run, "animals")
    assert len(inputs) > BATCH
    recorded = run.folder.load_answers(1).predicted["animals"]
    assert torch.equal(run.predict(inputs, "animals").best[:, 0].int(), recorded)
    turned = run.predict(inputs[::-1], "animals")
    assert turned.inputs == inputs[::-1] and torch.equal(turned.best[:, 0].int(), recorded.flip(0))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return made(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return made(tmp_path_factory.mktemp("demo"), "demo")


def test_a_pipeline_answers_by_name_with_probabilities(bert):
    texts = ["the old horse was seen", "a hammer and a saw"]
    pipe = bert.pipeline("animals")
    family, head = bert.model(), bert.heads()["animals"]
    with torch.no_grad():
        wanted = (family.features(family.preprocess(texts)) @ head[:, :-1].T + head[:, -1]).softmax(1)
    for row, best, both in zip(wanted, pipe(texts), pipe(texts, top_k=2), strict=True):
        by_name = dict(zip(["yes", "no"], row.tolist(), strict=True))
        assert [set(a) for a in (best, *both)] == [{"label", "score"}] * 3 and best == both[0]
        assert {a["label"]: a["score"] for a in both} == pytest.approx(by_name, abs=1e-5)
        assert best["label"] == max(by_name, key=by_name.get)
    for bad, said in ((0, "wanted 1 to 2"), (3, "top_k is 3; wanted 1 to 2")):
        with pytest.raises(SpecError, match=said):
            bert.predict(texts, "animals", top_k=bad)
        with pytest.raises(SpecError, match=said):
            pipe(texts, top_k=bad)


def test_a_version_is_used_that_is_in_force_or_was_named(bert):
    texts = ["the old horse was seen"]
    assert bert.predict(texts, "held").notes == () and bert.predict(texts, "held").version == 1
    (note,) = bert.predict(texts, "held", version=0).notes
    assert note == "version 0 is not in force; head is 1"
    assert "version 0 holds no edit of task 'places'" in bert.pipeline("places", version=0).notes[1]
    with pytest.raises(TalosError, match="'place' is none.*did you mean 'places'"):
        bert.predict(texts, "place")
    with pytest.raises(TalosError, match="version 7 does not exist"):
        bert.predict(texts, "places", version=7)


def test_a_task_that_was_set_aside_answers_as_before(tmp_path):
    run = made(tmp_path, "bert")
    inputs, _ = test_inputs(run, "places")
    frozen, classes = run.folder.load_heads()
    kept = ("animals", "held")
    spec = {**run.info["spec"], "tasks": [t for t in run.info["spec"]["tasks"] if t["name"] in kept]}
    run.folder.begin(
        spec, run.info["base"], run.info["identity"], {t: frozen[t] for t in kept}, {t: classes[t] for t in kept}
    )
    again = talos_ray.open_run(run.path)
    assert [t["name"] for t in again.info["spec"]["tasks"]] == ["animals"]
    found = again.predict(inputs, "places")
    assert torch.equal(found.best[:, 0].int(), run.folder.load_answers(1).predicted["places"])


# ------------------------------------------------------------------------------------- one edit alone


def with_edits(run: talos_ray.Run, *tasks: str) -> str:
    """Fingerprint of the base plus some deltas whole, added by hand."""
    tensors = {n: t.clone() for n, t in base_tensors(load_model(run.info["spec"]["model"])).items()}
    start = 0
    for name, index in run.mask.indices.items():
        flat = tensors[name].view(-1)
        total = flat[index].float()
        for task in sorted(tasks):
            total += run.deltas[task].values[start : start + len(index)].float()
        flat[index] = total.to(flat.dtype)
        start += len(index)
    return fingerprint(tensors)


@pytest.mark.parametrize(
    "kind, how", [("classifier bfloat16", {}), ("classifier", {"method": "tsv", "granularity": "element"})]
)
def test_an_edit_is_switched_on_alone_and_off_again_bit_by_bit(kind, how, tmp_path):
    run = made(tmp_path, kind, **how)
    first, second = run.version.targets
    pipe = run.pipeline(second)
    merged = run.version.model
    if how:  # what is merged lies on more weights than the edits themselves
        assert run.folder.load_merged(run.version.rows, run.mask.layout)[0].k > run.mask.k

    def now() -> str:
        return fingerprint(base_tensors(pipe.model))

    assert now() == merged
    for tasks in ([first], [second], [second, first]):
        with run.only(*tasks, on=pipe) as found:
            assert found is pipe and now() == with_edits(run, *tasks) != merged
        assert now() == merged
    with run.only(on=pipe.model):
        assert now() == run.info["base"]
    with pytest.raises(KeyError), run.only(first, on=pipe):
        raise KeyError
    assert now() == merged
    base = run.model(0)
    with run.only(first, on=base):
        assert fingerprint(base_tensors(base)) == with_edits(run, first)
    assert fingerprint(base_tensors(base)) == run.info["base"]


def test_what_cannot_be_switched_on_leaves_the_model_as_it_is(bert):
    pipe = bert.pipeline("places")
    for task, said in (("plcaes", "did you mean 'places'"), ("held", "'held' has no edit in run")):
        with pytest.raises(TalosError, match=said), bert.only(task, on=pipe):
            pass
    with (
        pytest.raises(TalosError, match="name all tasks in one"),
        bert.only("places", on=pipe),
        bert.only("animals", on=pipe),
    ):
        pass
    with (
        pytest.raises(TalosError, match="was not made by run"),
        bert.only("places", on=load_model(bert.info["spec"]["model"])),
    ):
        pass
    assert fingerprint(base_tensors(pipe.model)) == bert.version.model


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_that_was_moved_to_a_gpu_answers_there_and_gets_its_bytes_back(bert):
    texts = ["the old horse was seen", "a hammer and a saw"]
    pipe = bert.pipeline("animals")
    before = [answer["score"] for answer in pipe(texts)]
    pipe.module.to("cuda")
    assert [answer["score"] for answer in pipe(texts)] == pytest.approx(before, abs=1e-3)
    with bert.only("places", on=pipe):
        inside = {n: t.cpu() for n, t in base_tensors(pipe.model).items()}
    assert fingerprint(inside) == with_edits(bert, "places")
    assert fingerprint({n: t.cpu() for n, t in base_tensors(pipe.model).items()}) == bert.version.model


# ------------------------------------------------------------------------------- what inputs come as


def test_no_file_of_the_users_is_written_over(bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "text,label\nthe old horse,yes\nthe near hammer,no\n"
    (tmp_path / "in.csv").write_text(rows)
    run = bert.path
    before = {p: p.read_bytes() for p in Path(run).rglob("*") if p.is_file()}
    ask = ["predict", run, "--task", "animals", "in.csv", "--output"]
    compare = ["compare", run, "0", "1", "--task", "animals", "--data", "in.csv", "--out"]

    def told(*words: str) -> str:
        found = CliRunner().invoke(cli.app, list(words))
        assert found.exit_code != 0 and not isinstance(found.exception, AssertionError)
        return str(found.exception) + found.output

    for command in (ask, compare):
        assert "'in.csv' is there already; wanted a new file" in told(*command, "in.csv")
        assert "'in.csv' is read as input 'in.csv'" in told(*command, "in.csv", "--overwrite")
        assert "'s3://b/x.csv' is a URI; wanted a local path" in told(*command, "s3://b/x.csv")
    assert f"{run}/run.csv' lies in the run" in told(*ask, f"{run}/run.csv", "--overwrite")
    assert "lies in the run" in told(*compare, f"{run}/run.json", "--overwrite")
    assert "lies in the run" in told("report", run, "1", "--out", f"{run}/report/0001.html", "--overwrite")
    assert "'in.csv' is there already" in told("report", run, "1", "--out", "in.csv")
    assert "is a folder" in told("report", run, "1", "--out", str(tmp_path))
    assert "its folder does not exist" in told(*compare, "nowhere/out.csv")
    assert (tmp_path / "in.csv").read_text() == rows
    assert {p: p.read_bytes() for p in Path(run).rglob("*") if p.is_file()} == before
    for _ in range(2):
        assert CliRunner().invoke(cli.app, [*ask, "out.csv", "--overwrite"]).exit_code == 0
    assert (tmp_path / "out.csv").read_text().startswith("number,input,label,score\n0,the old horse,")


def test_an_export_goes_into_no_run(bert):
    for place in (Path(bert.path), Path(bert.path) / "export"):
        with pytest.raises(SpecError, match="lies in the run .*, which keeps only its own"):
            bert.export(place)
    assert not (Path(bert.path) / "export").exists()


def test_images_come_as_files_folders_arrays_or_pictures(demo, tmp_path):
    inputs, _ = test_inputs(demo, "sides")
    folder = tmp_path / "new"
    folder.mkdir()
    for i, image in enumerate(inputs):
        image.save(folder / f"{i:02d}.png")
    files = sorted(folder.iterdir())
    wanted = demo.predict(inputs, "sides")
    assert torch.equal(wanted.best[:, 0].int(), demo.folder.load_answers(1).predicted["sides"])
    (tmp_path / "rows.csv").write_text("picture\n" + "".join(f"new/{f.name}\n" for f in files))
    for given, how in (
        (files, {}), ([str(f) for f in files], {}), (folder, {}), ([np.asarray(i) for i in inputs], {}),
        (tmp_path / "rows.csv", {"input": "picture"}),
    ):  # fmt: skip
        found = demo.predict(given, "sides", **how)
        assert torch.equal(found.best, wanted.best) and torch.equal(found.scores, wanted.scores)
        assert found.inputs == [
            f"input {i}" if isinstance(given, list) and isinstance(given[0], np.ndarray) else str(f)
            for i, f in enumerate(files)
        ]
    assert demo.predict(files[3], "sides").inputs == [str(files[3])]


def test_one_image_is_not_taken_for_its_rows(demo):
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    wanted = demo.predict(list(images), "sides").best
    assert torch.equal(demo.predict(images, "sides").best, wanted)
    assert torch.equal(demo.predict(images[..., 0], "sides").best, demo.predict(list(images[..., 0]), "sides").best)
    for one in (images[0], images[0, ..., 0], np.array("x.png")):
        with pytest.raises(SpecError, match="the inputs are an array .* which is one image at most; wanted a list"):
            demo.predict(one, "sides")


def test_images_of_a_folder_a_class_are_told_right_and_wrong(demo, tmp_path):
    inputs, labels = test_inputs(demo, "sides")
    classes = demo.folder.load_heads()[1]["sides"]
    for i, (image, place) in enumerate(zip(inputs, labels.tolist(), strict=True)):
        (tmp_path / classes[place]).mkdir(exist_ok=True)
        image.save(tmp_path / classes[place] / f"{i}.png")
    found = demo.predict(tmp_path, "sides", input="image", label="label")
    recorded = demo.folder.load_answers(1).score("sides")
    assert (found.accuracy.value, found.accuracy.n) == (recorded.value, recorded.n)
    plain = demo.predict(tmp_path, "sides")
    assert plain.inputs == found.inputs and torch.equal(plain.best, found.best) and plain.accuracy is None


def test_labels_are_found_by_name_and_others_are_refused_or_counted_apart(bert, tmp_path, monkeypatch):
    inputs, labels = test_inputs(bert, "animals")
    names = [["yes", "no"][i] for i in labels.tolist()]
    new = tmp_path / "new.csv"

    def write(rows: list[tuple[str, str]]) -> None:
        with new.open("w", newline="") as out:
            csv.writer(out).writerows([("words", "kind"), *rows])

    columns = {"input": "words", "label": "kind"}
    for order in (1, -1):  # whatever class comes first
        write(list(zip(inputs, names, strict=True))[::order])
        found = bert.predict(new, "animals", **columns)
        recorded = bert.folder.load_answers(1).score("animals")
        right, n = recorded.value, recorded.n
        assert (found.accuracy.value, found.accuracy.n) == (right, n) and len(found) == n
    write([*zip(inputs, names, strict=True), ("the old saw", "perhaps"), ("by us", "")])
    with pytest.raises(SpecError, match="label 'perhaps', which is outside its 2 classes"):
        bert.predict(new, "animals", **columns)
    for t in bert.info["spec"]["tasks"]:
        monkeypatch.setitem(t, "unknown_classes", "drop")
    found = bert.predict(new, "animals", **columns)
    assert len(found) == n + 2 and (found.accuracy.value, found.accuracy.n) == (right, n)
    assert [r["given"] for r in found.rows()[-2:]] == [None, None] and found.rows()[-1]["right"] is None
    assert "1 of 10 rows are of other classes and not counted: 1 'perhaps'" in found.notes[0]
    assert "1 of 10 rows have no label" in found.notes[1]
    assert bert.predict(new, "animals", input="words").accuracy is None


def test_inputs_of_several_columns_and_answers_of_their_own(tmp_path):
    rows = [("who runs", "the old horse", "a wrench", "one"), ("what turns", "it", "wrench", "two")] * 20
    with (tmp_path / "x.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("question", "a", "b", "label"), *rows])
    task = {
        "name": "x",
        "data": str(tmp_path / "x.csv"),
        "kind": "text",
        "input": "{question} ?",
        "choices": ["{a}", "{b}"],
        "prompts": ["{}"],
    }
    run = recorded_run(tmp_path / "run", save_model(tmp_path / "model", "t5"), [task])
    listed = [{"question": q, "a": a, "b": b} for q, a, b, _ in rows]
    found = run.predict(listed, "x")
    table = run.predict(tmp_path / "x.csv", "x", label="label")
    assert torch.equal(found.best, table.best) and found.inputs[0] == "who runs ? | the old horse | a wrench"
    assert set(found.labels) <= {"one", "two"} and table.accuracy.n == 40
    split = load_task(talos_ray.Task.model_validate(run._tasks["x"]), 0).test
    answers = dict(zip(found.inputs, found.labels, strict=True))
    recorded = [["one", "two"][i] for i in run.folder.load_answers(1).predicted["x"].tolist()]
    assert [answers[split.words(i)] for i in range(len(split))] == recorded
    for bad, said in (
        (["who runs"], "input 0 has no value for 'question'; wanted a mapping"),
        ([listed[0], {"question": "q", "a": "b"}], "input 1 has no value for 'b'"),
        ([listed[0], {**listed[0], "a": 7}], "the inputs' values differ in kind"),
    ):
        with pytest.raises(SpecError, match=said):
            run.predict(bad, "x")


def test_bad_inputs_are_named_before_a_model_is_loaded(bert, demo, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("a model was composed for inputs that cannot be read")

    monkeypatch.setattr(talos_ray.Run, "_composed", never)
    write_images(tmp_path / "cut", 4)
    cut = tmp_path / "cut" / "2.png"
    cut.write_bytes(cut.read_bytes()[:60])
    for name, text in (("no.csv", "word\na\n"), ("gap.csv", 'text\na\n""\nb\n'), ("none.csv", "text\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "empty").mkdir()
    images = [Image.new("RGB", (8, 8))]
    for run, task, given, said in (
        (bert, "animals", [], "0 inputs are given"),
        (bert, "animals", ["a", 7], "input 1 is int; wanted a text"),
        (demo, "sides", images[0], "the inputs are Image; wanted a list, also of one"),
        (bert, "animals", ["a", " "], "row 1 of the list of inputs has no text"),
        (bert, "animals", ["a", "b\x1fc"], r"U\+001F"),
        (bert, "animals", "how was it?", "is no file, no folder and no name of the Hub; .* a list of texts"),
        (demo, "sides", "nowhere.png", "'nowhere.png' is no file, .* of the Hub; wanted one, or a list of images"),
        (bert, "animals", tmp_path / "no.csv", "column 'text' is not in split 'train'"),
        (bert, "animals", tmp_path / "gap.csv", "row 1 of .*gap.csv has no text in column 'text'"),
        (bert, "animals", tmp_path / "none.csv", "holds 0 inputs"),
        (demo, "sides", [cut], "input '.*2.png' .row 0.: it cannot be decoded"),
        (demo, "sides", tmp_path / "cut", "input '.*2.png' .row 2.: it cannot be decoded"),
        (demo, "sides", tmp_path / "empty", "holds 0 images"),
        (demo, "sides", [tmp_path / "nowhere.png"], "nowhere.png' does not exist"),
        (demo, "sides", [tmp_path / "no.csv", cut], "is a table among others"),
        (demo, "sides", [*images, "x.png"], "input 1 is str; wanted a PIL image or an array"),
        (demo, "sides", [np.zeros((4, 4, 7), np.uint8)], r"input 0 is an array uint8 \[4, 4, 7\], which is no image"),
        (demo, "sides", [*images, np.full((4, 4), 7.5, np.float32)], "input 1: its floating-point values go from 7.5"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=said) as error:
            run.predict(given, task)
        assert len(str(error.value).splitlines()) <= 2


# ---------------------------------------------------------------------------------- the command line


def talos(*words: object, stdin: str | None = None):
    return CliRunner().invoke(cli.app, ["predict", *map(str, words)], input=stdin)


def test_the_command_writes_csv_and_json_and_shows_a_table(bert, tmp_path):
    texts = ["the old horse was seen", "=1+1 hammer", 'it, is "not" far']
    new = tmp_path / "new.csv"
    with new.open("w", newline="") as out:
        csv.writer(out).writerows([("words", "kind"), *zip(texts, ["yes", "no", "no"], strict=True)])
    wanted = bert.predict(texts, "animals", top_k=2)
    asked = (bert.path, new, "--task", "animals", "--input", "words", "--label", "kind", "--top-k", 2)
    done = talos(*asked, "--output", tmp_path / "out.csv")
    assert done.exit_code == 0 and "3 inputs of task animals, answered by version 1" in done.output
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == ["number", "input", "label", "score", "label_2", "score_2", "given", "right"]
    assert [r["input"] for r in rows] == [texts[0], "'" + texts[1], texts[2]]  # no spreadsheet computes it
    assert [r["label"] for r in rows] == wanted.labels and [r["given"] for r in rows] == ["yes", "no", "no"]
    right = [r["label"] == r["given"] for r in rows]
    assert [r["right"] for r in rows] == [("wrong", "right")[x] for x in right]
    assert [float(r["score"]) for r in rows] == pytest.approx(wanted.scores[:, 0].tolist(), abs=1e-6)
    assert f"accuracy {sum(right) / 3:.3f} (" in done.output and "on 3 labelled inputs" in done.output
    done = talos(*asked, "--output", tmp_path / "out.json", "--json")
    told = json.loads(done.output)
    assert told == json.loads((tmp_path / "out.json").read_text()) and told["accuracy"]["value"] == sum(right) / 3
    assert [p["input"] for p in told["predictions"]] == texts and told["classes"] == ["yes", "no"]
    assert [p["top"][1]["label"] for p in told["predictions"]] == [r["label_2"] for r in rows]
    done = talos(bert.path, "-", "--task", "animals", stdin="\r\n".join(texts) + "\r\n")
    assert done.exit_code == 0 and [line for line in texts if line not in done.output] == []
    assert "accuracy" not in done.output


def test_the_command_takes_image_files_and_folders(demo, tmp_path):
    write_images(tmp_path, 6)
    names = [str(tmp_path / f"{i}.png") for i in (3, 0, 5)]
    (tmp_path / "rows.csv").unlink()
    told = json.loads(talos(demo.path, *names, "--task", "sides", "--json").output)
    assert [p["input"] for p in told["predictions"]] == names
    again = json.loads(talos(demo.path, "-", "--task", "sides", "--json", stdin="\n".join(names)).output)
    assert again == told
    whole = json.loads(talos(demo.path, tmp_path, "--task", "sides", "--version", 0, "--json").output)
    assert len(whole["predictions"]) == 6 and whole["version"] == 0 and "not in force" in whole["notes"][0]


def test_what_the_command_refuses_costs_nothing(bert, tmp_path):
    def refused(*words, stdin=None) -> str:
        done = talos(bert.path, *words, "--task", "animals", stdin=stdin)
        assert done.exit_code != 0 and isinstance(done.exception, SpecError)
        return str(done.exception)

    (tmp_path / "old.csv").write_text("kept")
    assert "neither .csv nor .json" in refused("-", "--output", tmp_path / "x.txt", stdin="a")
    assert "its folder does not exist" in refused("-", "--output", tmp_path / "no" / "x.csv", stdin="a")
    assert "row 1 of the list of inputs has no text" in refused("-", "--output", tmp_path / "new.csv", stdin="a\n\nb\n")
    assert "has no label column" in refused("-", "--label", "label", stdin="a\n")
    assert "a file of texts is named alone" in refused(tmp_path / "old.csv", tmp_path / "old.csv")
    assert (tmp_path / "old.csv").read_text() == "kept" and sorted(p.name for p in tmp_path.iterdir()) == ["old.csv"]


def test_new_data_may_call_their_columns_otherwise(bert, tmp_path):
    """In `compare` and `watch`."""
    inputs, labels = test_inputs(bert, "animals")
    where = tmp_path / "incoming"
    where.mkdir()
    new = where / "animals-march.csv"
    with new.open("w", newline="") as out:
        rows = [(text, ["yes", "no"][i]) for text, i in zip(inputs, labels.tolist(), strict=True)]
        csv.writer(out).writerows([("words", "kind"), *rows])
    columns = ("--input", "words", "--label", "kind")
    compared = CliRunner().invoke(
        cli.app, ["compare", bert.path, "0", "1", "--task", "animals", "--data", str(new), "--json", *columns]
    )
    change = json.loads(compared.output)["tasks"]["animals"]
    right = [int(bert.folder.load_answers(n).right("animals").sum()) for n in (0, 1)]
    assert (change["before"], change["after"], change["n"]) == (right[0] / len(rows), right[1] / len(rows), len(rows))
    watched = CliRunner().invoke(cli.app, ["watch", bert.path, str(where), "--json", *columns])
    (event,) = json.loads(watched.output)
    assert event["scores"]["now"]["value"] == right[1] / len(rows)
    with pytest.raises(SpecError, match="column 'text' is not in"):
        bert.compare(0, 1, "animals", str(new))
    with pytest.raises(SpecError, match="input and label name columns of new data"):
        bert.compare(0, 1, input="words")


def test_cells_of_a_csv_are_what_the_rows_are(bert):
    found = bert.predict(["by us", "@hammer"], "places")
    rows = list(csv.reader(io.StringIO(found.as_csv())))
    assert rows[0] == ["number", "input", "label", "score"] and rows[2][1] == "'@hammer" and len(rows) == 3


def test_what_stands_behind_a_score_is_shown_class_by_class(bert):
    recorded = bert.folder.load_answers(1)
    assert torch.equal(
        recorded.probability["animals"], bert.predict(test_inputs(bert, "animals")[0], "animals").scores[:, 0]
    )
    found = bert.class_scores("animals")
    n = len(recorded.right("animals"))
    right = int(recorded.right("animals").sum())
    assert found.confusion[0][0] + found.confusion[1][1] == right and sum(map(sum, found.confusion)) == n
    assert 0 < found.calibration_error < 1
    done = CliRunner().invoke(cli.app, ["status", bert.path, "--task", "animals", "--json"])
    assert json.loads(done.output) == {"task": "animals", "version": 1, "classes": ["yes", "no"], **found.as_dict()}
    done = CliRunner().invoke(cli.app, ["status", bert.path, "--task", "animals"])
    told = f"balanced accuracy (mean recall) {found.balanced_accuracy:.3f}, macro F1 {found.macro_f1:.3f}"
    assert told in done.output and f"calibration error {found.calibration_error:.3f}, in 15 bins" in done.output
    with pytest.raises(TalosError, match="no answers on task 'animal'.*did you mean 'animals'"):
        bert.class_scores("animal")
