"""Models that write text: answers that a row brings along, answers that the model samples itself, and the loss on the right one."""

import pytest
import torch
from recorded import recorded_run
from texts import save_model, write_texts

import talos_ray
from talos_ray import SpecError
from talos_ray.config import CHOICE
from talos_ray.core.fisher import SquaredGradients
from talos_ray.core.layout import fingerprint
from talos_ray.corruptions import corrupted
from talos_ray.models import layout_of, load_model
from talos_ray.models.heads import answering, scorer
from talos_ray.orchestrate.plan import prepare
from talos_ray.progress import Progress
from talos_ray.spec import make_spec
from talos_ray.tasks import load_task

TEXTS = ["the old horse was seen", "by us", "it is not far from here again"]
PHRASES = ["heron and otter", "wrench"]


@pytest.fixture(scope="module", params=["t5", "gpt2", "llama", "qwen3"])
def model(request, tmp_path_factory):
    return load_model(save_model(tmp_path_factory.mktemp(request.param), request.param))


def alone(f, text: str, answer: list[int]) -> float:
    """Log-probability of an answer, by the library's own loss (a mean over its tokens)."""
    words, said = f.tokenizer(text, return_tensors="pt").input_ids, torch.tensor([answer])
    if type(f).__name__ == "Seq2Seq":
        return -float(f.module(words, labels=said).loss) * len(answer)
    whole = torch.cat([words, said], 1)
    return -float(f.module(whole, labels=torch.cat([torch.full_like(words, -100), said], 1)).loss) * len(answer)


def written(batch: dict, i: int) -> list[int]:
    row = batch["answers"][i, 0]
    return row[row >= 0].tolist()


@torch.no_grad()
def test_answers_of_a_row_are_scored_as_those_of_a_task(model):
    head = model.head(PHRASES, ["{}"])
    own = model.preprocess([CHOICE.join([t, *PHRASES]) for t in TEXTS])
    assert torch.allclose(model.logits(own, head), model.logits(model.preprocess(TEXTS), head), atol=1e-5)
    swapped = model.preprocess([CHOICE.join([t, *PHRASES[::-1]]) for t in TEXTS])
    assert torch.allclose(model.logits(swapped, head).flip(1), model.logits(own, head), atol=1e-5)
    assert torch.equal(model.features(own), model.features(model.preprocess(TEXTS)))


@torch.no_grad()
def test_the_right_answer_alone_scores_as_among_the_others(model):
    head, labels = model.head(PHRASES, ["{}"]), torch.tensor([1, 0, 1])
    for texts in (TEXTS, [CHOICE.join([t, *PHRASES]) for t in TEXTS]):
        inputs = model.preprocess(texts)
        found = model.completed({"inputs": inputs, "labels": labels}, head)
        assert torch.allclose(found, model.logits(inputs, head).gather(1, labels[:, None]), atol=1e-5)


@torch.no_grad()
def test_a_ranking_by_sums_is_the_librarys_log_probability(model):
    """One answer is four tokens longer than the other: by the mean that does not count, by the sum it does."""
    head = model.head(PHRASES, ["{}"])
    said = [row[row >= 0].tolist() for row in head]
    wanted = torch.tensor([[alone(model, text, answer) for answer in said] for text in TEXTS])
    for texts in (TEXTS, [CHOICE.join([t, *PHRASES]) for t in TEXTS]):
        inputs = model.preprocess(texts)
        for found in (scorer(model, "sums", head)(inputs), answering(model, "sums", head)(inputs)):
            assert torch.allclose(found, wanted, atol=1e-3)
        assert torch.allclose(model.logits(inputs, head), wanted / torch.tensor(list(map(len, said))), atol=1e-3)


def test_a_task_ranks_as_it_says_wherever_it_is_answered(tmp_path):
    """And what is addressed by its head is another result."""
    text = {"kind": "text", "input": "text", "prompts": ["{}"]}
    name = save_model(tmp_path / "model", "t5")
    one = {**write_texts(tmp_path / "data", "animals", 20), **text}
    two = {**write_texts(tmp_path / "data", "places", 20), **text, "ranking": "sum"}
    run = recorded_run(tmp_path / "run", name, [one, two])
    assert {task: kind for task, (kind, _) in run.folder.heads_of(None).items()} == {"animals": "words", "places": "sums"}
    run.export(tmp_path / "out")
    assert "; logits of places are sums and no means.\n" in (tmp_path / "out/README.md").read_text()
    spec = make_spec({"model": name, "tasks": [one, {**two, "phrases": one["phrases"]}], "output": str(tmp_path / "x")})
    prepared = prepare(spec, Progress())
    assert (prepared.heads["animals"] == prepared.heads["places"]).all()
    assert prepared.head_mark("animals") == fingerprint({"head": torch.from_numpy(prepared.heads["animals"])})
    assert prepared.head_mark("places") != prepared.head_mark("animals") and "tokens" not in prepared.identity


def test_a_text_is_cut_to_the_tokens_that_are_asked_for(tmp_path):
    name = save_model(tmp_path / "model", "t5")
    assert load_model(name, 4).preprocess(TEXTS).shape == (3, 4) and load_model(name).preprocess(TEXTS).shape == (3, 32)
    one = {**write_texts(tmp_path / "data", "animals", 20), "kind": "text", "input": "text", "prompts": ["{}"]}
    spec = make_spec({"model": name, "tokens": 4, "tasks": [one], "output": str(tmp_path / "x")})
    assert prepare(spec, Progress()).identity["tokens"] == 4
    with pytest.raises(SpecError, match=r"tokens is 8, and model 'demo' reads no texts; leave it out"):
        load_model("demo", 8)


@torch.no_grad()
def test_sampled_answers_are_the_models_own(model):
    """Their log-probability is that of the library, and their first words come as often as the model says."""
    head = model.head(["a b c d"], ["{}"])
    batch = model.sampled(model.preprocess(TEXTS), head, torch.Generator().manual_seed(0))
    assert batch["answers"].shape == (3, 1, head.shape[1]) and (batch["answers"][:, 0, 0] >= 0).all()
    found = model.likelihood(batch)
    assert found.shape == (3, 1)
    for i, text in enumerate(TEXTS):
        assert float(found[i]) == pytest.approx(alone(model, text, written(batch, i)), abs=1e-3)
    n = 4000
    again = model.sampled(model.preprocess(TEXTS[:1] * n), head[:, :1], torch.Generator().manual_seed(1))
    seen = torch.bincount(again["answers"].flatten(), minlength=len(model.tokenizer)) / n
    wanted = model.logits(model.preprocess(TEXTS[:1]), torch.arange(len(seen))[:, None])[0].exp()
    assert wanted.sum() == pytest.approx(1, abs=1e-3)
    assert (seen - wanted).abs().max() < 5 * (0.25 / n) ** 0.5


@torch.no_grad()
def test_an_answer_that_has_ended_is_not_written_on(model):
    head, ends = model.head(["a b c d e f"], ["{}"]), model.module.config.eos_token_id
    batch = model.sampled(model.preprocess(TEXTS * 200), head, torch.Generator().manual_seed(0))
    rows = [written(batch, i) for i in range(600)]
    assert any(ends in row[:-1] or len(row) < head.shape[1] for row in rows)
    assert all(ends not in row[:-1] and (len(row) == head.shape[1] or row[-1] == ends) for row in rows)


def test_sensitivity_to_answers_comes_from_hooks_and_is_that_of_a_loop(model):
    layout, params = layout_of(model), dict(model.module.named_parameters())
    head, fisher = model.head(PHRASES, ["{}"]), SquaredGradients(model.module, layout_of(model))
    batch = model.sampled(model.preprocess(TEXTS), head, torch.Generator().manual_seed(3))
    assert fisher.check(model.likelihood, batch, "logit").looped == ()
    fisher.add(model.likelihood, batch, torch.Generator(), "logit")
    wanted = torch.zeros(layout.total)
    for i in range(len(TEXTS)):
        one = {k: v[i : i + 1] for k, v in batch.items()}
        grads = torch.autograd.grad(model.likelihood(one).sum(), [params[n] for n in layout.names])
        wanted += torch.cat([g.flatten() for g in grads]).square()
    assert torch.allclose(fisher.sums, wanted, rtol=1e-3, atol=1e-7 * float(wanted.max()))


def test_a_row_brings_its_answers_along(tmp_path):
    (tmp_path / "x.csv").write_text(
        "question,a,b,label\n" + "who runs,the old horse,a wrench,one\nwhat turns,it,wrench,two\n" * 10
    )
    task = {"name": "x", "data": str(tmp_path / "x.csv"), "input": "question", "choices": ["{a}", "{b}"]}
    asked = {"model": "hf:a/b", "output": "x"}
    data = load_task(make_spec({**asked, "tasks": [task]}).tasks[0], 0)
    rows = [data.train.words(i) for i in range(len(data.train))]
    assert set(rows) == {"who runs | the old horse | a wrench", "what turns | it | wrench"}
    spoilt = corrupted("text", "case", [CHOICE.join(["who runs", "the old horse"])], 0)
    assert spoilt == [CHOICE.join(["WHO RUNS", "the old horse"])]
    for change, said in (
        ({"choices": ["{a}"]}, "1 choices for 2 classes"),
        ({"choices": ["{a}", "{c}"]}, "column 'c' is not in split 'train'"),
        ({"choices": ["{a}", "{b"]}, "is no template"),
    ):
        with pytest.raises(SpecError, match=said):
            load_task(make_spec({**asked, "tasks": [{**task, **change}]}).tasks[0], 0)
    task["data"] = str(tmp_path / "y.csv")
    (tmp_path / "y.csv").write_text("question,a,b,label\n" + "who\x1fruns,it,we,one\nwhat,it,we,two\n" * 10)
    for change in ({}, {"choices": None}):
        with pytest.raises(SpecError, match=r"holds the character U\+001F"):
            load_task(make_spec({**asked, "tasks": [{**task, **change}]}).tasks[0], 0)


def test_what_a_model_that_writes_nothing_cannot_do(tmp_path):
    (tmp_path / "x.csv").write_text("text,a,b,label\n" + "horse,otter,heron,yes\nsaw,chisel,saw,no\n" * 20)
    task = {"name": "x", "data": str(tmp_path / "x.csv"), "choices": ["{a}", "{b}"], "classes": ["yes", "no"]}
    model = save_model(tmp_path / "bert", "bert")
    told = "tasks.x.choices, calibration.labels: tokens, train.loss: completion"
    with pytest.raises(SpecError, match=f"writes no text, so it cannot have {told}"):
        talos_ray.check(
            make_spec(
                {
                    "model": model,
                    "tasks": [task],
                    "output": str(tmp_path / "run"),
                    "calibration": {"labels": "tokens"},
                    "train": {"loss": "completion"},
                }
            )
        )
    for settings, said in (
        ({"calibration": {"labels": "tokens", "score": "logit"}}, "wanted 'log_prob'"),
        ({"train": {"loss": "completion", "label_noise": 0.1}}, "wanted 'choice'"),
    ):
        with pytest.raises(SpecError, match=said):
            make_spec({"model": model, "tasks": [task], "output": "x", **settings})
