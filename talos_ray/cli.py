"""The `talos` command."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TextIO

import typer
from rich.console import Console
from rich.table import Table

from talos_ray.errors import TalosError
from talos_ray.shown import plain

if TYPE_CHECKING:  # torch and Ray load slowly, and `--help` needs neither: a command imports what it uses
    from talos_ray.api import Run
    from talos_ray.config import Spec
    from talos_ray.estimate import Estimate
    from talos_ray.orchestrate.timed import Timed
    from talos_ray.storage.version import Version
    from talos_ray.trust.predict import Predictions

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Learn, merge and undo many tasks in one pretrained model.",
    epilog=(
        "Exit codes: 0 done; 1 `verify` found something; 2 wrong input, or a stage that could not be finished; 3 the "
        "newest version is kept aside by its gate; 4 `watch` found that the gate no longer holds; 130 interrupted."
    ),
)


def _version(asked: bool) -> None:
    if asked:
        import talos_ray

        typer.echo(f"talos_ray {talos_ray.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Learn, merge and undo many tasks in one pretrained model."""


HELD = 3
DRIFTED = 4
BEFORE = "Before anything runs"
MAKE = "Make and change"
DECIDE = "Look and decide"
USE = "Use"
PROVE = "Prove and watch"
TAKE = "Take away"
SHOWN = 40  # predictions that a terminal shows; a file has all
MATRIX = 10  # classes whose confusion matrix a terminal has room for; --json has it of all
DEMO_SPEC = Path(__file__).parent / "demo" / "spec.yaml"

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Ray's own messages too.")]
Reason = Annotated[Optional[str], typer.Option(help="Why; kept in the history.")]
Folder = Annotated[str, typer.Argument(help="A run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
InputColumn = Annotated[
    Optional[str],
    typer.Option("--input", metavar="COLUMN", help="Column of new data that holds the inputs, if not the task's own."),
]
LabelColumn = Annotated[
    Optional[str],
    typer.Option("--label", metavar="COLUMN", help="Column of new data that holds the labels, if not the task's own."),
]


def _allow(modules: Optional[list[str]]) -> Optional[list[str]]:
    if modules:
        from talos_ray.models import allow_code

        allow_code(modules)
    return modules


AllowCode = Annotated[
    Optional[list[str]],
    typer.Option(
        "--allow-code",
        metavar="MODULE",
        callback=_allow,
        help="Let a model python:MODULE:FUNCTION run that module's code; remembered until the code changes.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file, if it is there already.")]
Output = Annotated[Optional[str], typer.Option("--output", "-o", help="Run folder, instead of the spec's.")]


@app.command(rich_help_panel=MAKE)
def edit(
    spec: Annotated[Path, typer.Argument(help="A YAML spec; see examples/.")],
    output: Output = None,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="Try the spec first: a tiny model of the same class, made-up rows, a few steps."),
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    allow_code: AllowCode = None,
) -> None:
    """Do whatever of a spec is not done yet: calibrate, train, merge, test.

    Example: talos edit examples/demo.yaml
    """
    from talos_ray.api import edit as run
    from talos_ray.spec import load_spec

    changes = {"output": output} if output else {}
    asked = load_spec(spec, **changes)
    if smoke:
        from talos_ray.smoke import shrunk

        asked = shrunk(asked, Path(f"{asked.output.rstrip('/')}-smoke"))
    with _aside(as_json):
        found = run(spec=asked, verbose=verbose)
    show(found, as_json)


@app.command(rich_help_panel=MAKE)
def demo(output: Output = "runs/demo", as_json: Json = False, verbose: Verbose = False) -> None:
    """Run the embedded example: a tiny CLIP, eight tasks, one control task. Needs no download.

    Example: talos demo
    """
    edit(DEMO_SPEC, output, as_json=as_json, verbose=verbose)


@app.command(rich_help_panel=BEFORE)
def init(
    folder: Annotated[Path, typer.Argument(help="A folder with a file or image folder a task.")],
    model: Annotated[
        Optional[str], typer.Option(help="The model; a usual one for images or texts, if not given.")
    ] = None,
    from_mergekit: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Make it of this mergekit configuration instead.")
    ] = None,
) -> None:
    """Write FOLDER/spec.yaml, a commented spec of what lies there. Never overwrites.

    Example: talos init my_data
    """
    from talos_ray.errors import SpecError
    from talos_ray.integrations.mergekit import spec_of
    from talos_ray.scaffold import scaffold

    if from_mergekit and model:
        raise SpecError(
            "init was given a mergekit file and a model; wanted one of them: the file names its base; leave --model out"
        )
    spec = folder / "spec.yaml"
    text = spec_of(from_mergekit) if from_mergekit else scaffold(folder, model)
    if spec.exists():
        raise SpecError(f"{str(spec)!r} is there already; wanted none; move it, or edit it")
    folder.mkdir(parents=True, exist_ok=True)  # of a mergekit file's spec, which lies anywhere
    spec.write_text(text, encoding="utf-8")
    say(f"{spec}: look at it, then: talos check {spec}")


@app.command(rich_help_panel=BEFORE)
def schema() -> None:
    """Print the JSON Schema of a spec: editors complete and check keys by it.

    Example: talos schema > talos.schema.json
    """
    from talos_ray.spec import schema as found

    _print(found())


@app.command(rich_help_panel=BEFORE)
def check(
    spec: Annotated[Path, typer.Argument(help="A YAML spec; see examples/.")],
    as_json: Json = False,
    allow_code: AllowCode = None,
) -> None:
    """Find everything that is wrong with a spec, its data and its model, before anything runs.

    Example: talos check examples/quick.yaml
    """
    from talos_ray.api import check as run
    from talos_ray.errors import SpecError
    from talos_ray.spec import load_spec

    try:
        with _aside(as_json):
            run(load_spec(spec))
    except SpecError as error:
        # For a program what is wrong is the answer, and no failure to answer.
        if not as_json:
            raise
        _print({"problems": str(error).splitlines()})
        sys.exit(2)
    if as_json:
        _print({"problems": []})


@app.command(rich_help_panel=BEFORE)
def plan(
    spec: Annotated[Path, typer.Argument(help="A YAML spec; see examples/.")],
    tflops: Annotated[
        Optional[float],
        typer.Option(help="TFLOP/s that a worker reaches; half of a product's on this machine, if not given."),
    ] = None,
    timed: Annotated[
        bool,
        typer.Option("--timed", help="Load weights and data, time pieces of the work here, and say what stages take."),
    ] = False,
    workers: Annotated[
        Optional[int],
        typer.Option(
            min=1, help="Workers at once, with --timed; as many as this machine has places for, if not given."
        ),
    ] = None,
    as_json: Json = False,
    allow_code: AllowCode = None,
) -> None:
    """Say what a spec will need: memory a worker, object store, storage, hours. Starts nothing, and loads no weights
    unless it is to be timed.

    Example: talos plan examples/quick.yaml
    """
    from dataclasses import asdict

    from talos_ray.core.mask import DATA_FREE
    from talos_ray.estimate import estimate, product_rate
    from talos_ray.spec import load_spec

    asked = load_spec(spec)
    logging.disable(logging.WARNING)  # of libraries: the plan itself says what it could not look up
    try:
        # Before anything else has loaded the libraries that the check of a run waits for.
        found, why_not = _timed(asked, workers) if timed else (None, None)
        needs = estimate(asked)
    finally:
        logging.disable(logging.NOTSET)
    # A training reaches about half of what a matrix product alone does.
    rate = tflops * 1e12 if tflops else product_rate() / 2
    hours = {stage: work / rate / 3600 for stage, work in needs.work.items()}
    if as_json:
        told: dict[str, Any] = {**asdict(needs), "hours of one worker": hours, "flops a second": rate}
        if timed:
            told["timed"] = found.as_dict() if found is not None else None
            told["not timed"] = why_not
        return _print(told)
    _show_needs(asked, needs, hours)
    if found is not None:
        _show_timed(found)
    if why_not is not None:
        say(why_not)
    if asked.mask.strategy not in DATA_FREE:
        say(
            "scores: for one calibration worker, and once more for each other; Ray spills to disk what its object "
            "store cannot hold"
        )
    where_from = "" if tflops else ", half of what a matrix product reaches here"
    say(f"hours: at {rate / 1e12:.2f} TFLOP/s a worker{where_from}; --tflops says another")
    if asked.train.precision == "bf16" and asked.cluster.gpus_per_worker:
        say("what is kept for the backward is counted in float32; bf16 on a GPU keeps a little more than half of it")
    if needs.unknown:
        say(f"work not counted, because nobody says how many examples there are: {', '.join(needs.unknown)}")


def _timed(asked: Spec, workers: int | None) -> tuple[Timed | None, str | None]:
    """What the stages of a spec take here, or a line that says why nobody can tell."""
    from talos_ray.orchestrate.timed import timed_plan

    try:
        return timed_plan(asked, workers), None
    except TalosError as error:
        return None, f"not timed: {' '.join(str(error).split())}"


def _show_timed(found: Timed) -> None:
    """Print as a table what the stages take."""
    from talos_ray.progress import duration

    def words(seconds: float) -> str:
        """Minutes only where a minute more or less says little."""
        return f"{seconds:.0f} s" if seconds < 600 else duration(seconds)

    title = f"timed, {found.workers} worker(s)"
    table = Table("stage", "takes", title=title, title_justify="left")
    for stage, seconds in found.seconds.items():
        _row(table, stage, words(seconds))
    table.add_section()
    _row(table, "in all", words(sum(found.seconds.values())))
    _show(table)
    for note in found.notes:
        say(note)


def _show_needs(asked: Spec, needs: Estimate, hours: Mapping[str, float]) -> None:
    """Print a plan as a table: weights, bytes by part, work by stage."""
    title = plain(f"{asked.model}, {len(asked.tasks)} tasks")
    table = Table("what", "part", "needs", title=title, title_justify="left")
    _row(table, "weights", "in all", f"{needs.parameters / 1e6:,.1f} M")
    _row(table, "", "eligible", f"{needs.eligible / 1e6:,.1f} M")
    _row(table, "", "that may change", f"{needs.masked / 1e6:,.1f} M")
    for what, parts in (
        (f"a training worker, {needs.batch.samples} samples a backward", needs.worker),
        ("a learning run of the merge, beside its batch", needs.merging),
        ("Ray's object store", needs.object_store),
        ("storage", needs.storage),
    ):
        if not parts:  # a merge that is searched learns nothing
            continue
        table.add_section()
        label = what  # stands in the first row of its section alone
        for part, size in {**parts, "in all": sum(parts.values())}.items():
            _row(table, label, part, f"{size / 1e9:,.3f} GB")
            label = ""
    table.add_section()
    for stage, needed in hours.items():
        _row(table, f"{stage}, one worker alone", f"{needs.work[stage] / 1e12:,.0f} TFLOP", f"{needed:,.2f} h")
    _show(table)


@app.command(rich_help_panel=MAKE)
def reproduce(
    suite: Annotated[str, typer.Argument(help="'demo', or a YAML spec; see examples/.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of runs and tables.")] = Path("reproduced"),
    model: Annotated[Optional[str], typer.Option(help="Instead of the spec's model.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of everything, each with its own draws.")] = 3,
    as_json: Json = False,
    allow_code: AllowCode = None,
) -> None:
    """Measure the published protocol on a suite of tasks: addition and negation, for TaLoS, dense task arithmetic,
    TIES, joint training and the learned merge. Tables as Markdown, CSV and LaTeX; goes on where it was stopped.

    Example: talos reproduce demo --seeds 1
    """
    from talos_ray.reproduce.protocol import reproduce as measured
    from talos_ray.reproduce.tables import sources, tables, write
    from talos_ray.spec import load_spec

    _allow(allow_code)
    asked = load_spec(DEMO_SPEC if suite == "demo" else suite, **({"model": model} if model else {}))
    with _aside(as_json):
        found = measured(asked, output, seeds, say)
        made = tables(asked, found)
        files = write(made, sources(asked), output)
    if as_json:
        _print({name: table.to_dict("records") for name, table in made.items()})
        return
    for name, rows in made.items():
        table = Table(title=f"{name}, test data", title_justify="left")
        for column in rows.columns:
            table.add_column(column, no_wrap=column == "method")
        for row in rows.fillna("").values.tolist():
            _row(table, *row)
        _show(table)
    say(*sources(asked), *map(str, files))


@app.command(rich_help_panel=DECIDE)
def status(
    run: Folder,
    task: Annotated[Optional[str], typer.Option(help="Show what stands behind a task's score, class by class.")] = None,
    as_json: Json = False,
) -> None:
    """Show a run's head: coefficients, target and control scores; or one task of it, class by class.

    Example: talos status runs/demo
    """
    from talos_ray.api import open_run

    opened = open_run(run)
    if task is None:
        show(opened, as_json)
    else:
        _show_class_scores(opened, task, as_json)


@app.command(rich_help_panel=PROVE)
def top(
    run: Folder,
    once: Annotated[bool, typer.Option("--once", help="Print it once and end, instead of following the run.")] = False,
    as_json: Json = False,
) -> None:
    """See how far the process is that works on a run, from any machine that sees its folder.

    Example: talos top runs/demo
    """
    import time

    from rich.console import Group
    from rich.live import Live

    from talos_ray.progress import duration, view
    from talos_ray.storage.history import read_now
    from talos_ray.storage.run_folder import RunFolder

    store = RunFolder(run).store

    def look() -> Group | None:
        news = read_now(store)
        if news is None:
            return None
        age = max(0.0, time.time() - news["time"])  # the clocks of two machines differ
        lines = [plain(line) for line in news["lines"][-5:]]
        return Group(view(news), *lines, f"told {duration(age)} ago; {news['restarts']} restart(s)")

    if as_json:
        _print(read_now(store))
        return
    now = look()
    if now is None:
        say(f"nobody works on {run}; `talos status {run}` shows what it holds")
        return
    console = Console(markup=False, emoji=False, highlight=False)  # what stands in brackets is text, not markup
    if once:
        console.print(now)
        return
    with Live(now, console=console, refresh_per_second=1) as live:
        while (now := look()) is not None:
            live.update(now)
            time.sleep(2.0)


@app.command("spec", rich_help_panel=DECIDE)
def spec_(run: Folder) -> None:
    """Print what a run was asked for, as YAML, without what are defaults: to change it and edit again.

    Example: talos spec runs/demo > spec.yaml
    """
    from talos_ray.api import open_run

    print(open_run(run).spec.to_yaml(), end="")


@app.command(rich_help_panel=DECIDE)
def report(
    run: Folder,
    version: Annotated[Optional[int], typer.Argument(help="A version; head, if not given.")] = None,
    lang: Annotated[str, typer.Option(help="en or ja.")] = "en",
    out: Annotated[str, typer.Option(metavar="FILE", help="The page.")] = "report.html",
    overwrite: Overwrite = False,
) -> None:
    """Write the report on a version as one page, with what `watch` has found since.

    Example: talos report runs/demo --lang ja --out report-ja.html
    """
    from talos_ray.api import open_run

    say(open_run(run).report(out, version, language=lang, overwrite=overwrite))


@app.command(rich_help_panel=DECIDE)
def rollback(
    run: Folder,
    version: Annotated[
        Optional[int], typer.Argument(help="Version to go back to; the one before head, if not given.")
    ] = None,
    reason: Reason = None,
    as_json: Json = False,
    allow_code: AllowCode = None,
) -> None:
    """Move head to an earlier version, exactly. Can itself be rolled back.

    Example: talos rollback runs/demo 0 --reason "control fell"
    """
    from talos_ray.api import open_run

    opened = open_run(run)
    before = opened.head
    opened.rollback(version, reason).model()  # made once, which checks it against its fingerprint
    if as_json:
        return _print(opened.version.as_dict())
    say(
        f"{run}: head was version {before}, is now version {opened.head}; the model's fingerprint "
        f"{opened.version.model[:12]} was checked bitwise"
    )


@app.command(rich_help_panel=MAKE)
def add(
    run: Folder,
    task: Annotated[str, typer.Argument(help="A YAML file that describes one task, or the name of a recipe.")],
    relearn: Annotated[
        str | None,
        typer.Option(help="`all`: find the coefficients and heads of all tasks anew, not of the new one alone."),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    allow_code: AllowCode = None,
) -> None:
    """Train one more task on the run's mask and merge it in. The others keep their deltas, coefficients and heads.

    Example: talos add runs/demo invoices.yaml
    """
    from talos_ray.api import open_run

    with _aside(as_json):
        found = open_run(run).add(_task(task), relearn=relearn, verbose=verbose)
    show(found, as_json)


@app.command("import", rich_help_panel=MAKE)
def import_(
    run: Folder,
    task: Annotated[str, typer.Argument(help="A YAML file that describes one task, or the name of a recipe.")],
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A safetensors file, a folder of them, a PEFT adapter's folder, or a model like hf:FOLDER, "
            "fine-tuned on the task; or hub:OWNER/NAME@REVISION."
        ),
    ],
    widen: Annotated[
        Optional[str],
        typer.Option(metavar="FOLDER", help="A new run there, whose mask also holds all they changed."),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    allow_code: AllowCode = None,
) -> None:
    """Add a task from weights that were fine-tuned elsewhere: what they changed on the run's mask. Says how much of it
    is lost; with --widen all that they changed comes in, in a new run beside this one (but for embeddings and heads).

    Example: talos import runs/demo invoices.yaml tuned.safetensors
    """
    from talos_ray.api import open_run

    with _aside(as_json):
        found = open_run(run).import_(_task(task), checkpoint, widen=widen, verbose=verbose)
    show(found, as_json)


@app.command(rich_help_panel=MAKE)
def merge(
    run: Folder,
    tasks: Annotated[list[str], typer.Argument(help="Target tasks of the run.")],
    reason: Reason = None,
    as_json: Json = False,
    verbose: Verbose = False,
    allow_code: AllowCode = None,
) -> None:
    """Merge some of a run's tasks, with coefficients of their own. Trains nothing.

    Example: talos merge runs/demo street_numbers road_signs
    """
    from talos_ray.api import open_run

    with _aside(as_json):
        found = open_run(run).merge(tasks, reason=reason, verbose=verbose)
    show(found, as_json)


@app.command(rich_help_panel=MAKE)
def remove(
    run: Folder,
    task: Annotated[str, typer.Argument(help="A task that head holds.")],
    reason: Reason = None,
    as_json: Json = False,
    verbose: Verbose = False,
    allow_code: AllowCode = None,
) -> None:
    """Take one task out of head, exactly. The others keep their coefficients.

    Example: talos remove runs/demo lighting --reason "no longer needed"
    """
    from talos_ray.api import open_run

    with _aside(as_json):
        found = open_run(run).remove(task, reason=reason, verbose=verbose)
    show(found, as_json)


@app.command(rich_help_panel=MAKE)
def forget(
    run: Folder,
    task: Annotated[str, typer.Argument(help="A target task of the run.")],
    keep: Annotated[float, typer.Option(help="Share of its score that every other task must keep.")] = 0.95,
    at_most: Annotated[
        Optional[float], typer.Option(help="Accuracy that counts as forgotten; 0.05 above chance, if not given.")
    ] = None,
    method: Annotated[
        Literal["learned", "grid"],
        typer.Option(help="learned, by gradient; or grid: one coefficient of the task's delta, as the paper has it."),
    ] = "learned",
    reason: Reason = None,
    as_json: Json = False,
    verbose: Verbose = False,
    allow_code: AllowCode = None,
) -> None:
    """Make head forget one task, while all control tasks and all it has learnt hold. Changes nothing if that cannot be.

    Example: talos forget runs/demo road_signs --keep 0.95
    """
    from talos_ray.api import open_run

    with _aside(as_json):
        found = open_run(run).forget(task, keep, at_most=at_most, reason=reason, method=method, verbose=verbose)
    show(found, as_json)


@app.command(rich_help_panel=DECIDE)
def approve(
    run: Folder,
    version: Annotated[int, typer.Argument(help="A version that its gate kept aside.")],
    by: Annotated[str, typer.Option(help="Who approves it.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")],
    sign: Annotated[Optional[str], typer.Option(help="File of a private Ed25519 key that signs the approval.")] = None,
    as_json: Json = False,
) -> None:
    """Put a version in force although its gate does not let it through.

    Example: talos approve runs/demo 3 --by "J. Doe" --reason "control task is outdated"
    """
    from talos_ray.api import open_run

    show(open_run(run).approve(version, by=by, reason=reason, sign=sign), as_json)


@app.command(rich_help_panel=DECIDE)
def diff(
    run: Folder,
    a: Annotated[int, typer.Argument(help="A version.")],
    b: Annotated[int, typer.Argument(help="Another.")],
    as_json: Json = False,
) -> None:
    """Show how two versions differ, and whether that could be chance.

    Example: talos diff runs/demo 0 1
    """
    from talos_ray.api import open_run

    _show_change(open_run(run).diff(a, b), as_json)


@app.command(rich_help_panel=DECIDE)
def compare(
    run: Folder,
    a: Annotated[int, typer.Argument(help="A version.")],
    b: Annotated[int, typer.Argument(help="Another.")],
    data: Annotated[Optional[str], typer.Option(help="New data; the run's test data, if not given.")] = None,
    task: Annotated[Optional[str], typer.Option(help="The task of the run that the new data belong to.")] = None,
    input: InputColumn = None,
    label: LabelColumn = None,
    out: Annotated[
        Optional[str], typer.Option(metavar="FILE", help="CSV of every input that the two answer differently.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    allow_code: AllowCode = None,
) -> None:
    """Ask two versions the same, and list what became right and what became wrong.

    Example: talos compare runs/demo 0 1 --out changed.csv
    """
    from talos_ray import user_files
    from talos_ray.api import open_run

    if out:  # asked before the work that it would be for
        user_files.check_free(out, overwrite=overwrite, inputs=[data] if data else [])
    difference, changed = open_run(run).compare(a, b, task, data, input=input, label=label)
    _show_change(difference, as_json)
    if out:
        user_files.write(out, changed.encode(), overwrite=overwrite)


@app.command(rich_help_panel=USE)
def predict(
    run: Folder,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS",
            help="Image files and folders of images; or one table (CSV, TSV, JSON, Parquet); "
            "or -, for a line an input: a text, or an image file.",
        ),
    ],
    task: Annotated[str, typer.Option(help="A target or control task of the run.")],
    input: InputColumn = None,
    label: Annotated[
        Optional[str],
        typer.Option(metavar="COLUMN", help="Column that holds labels: also tell how many answers are right."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Classes that are told of each input, the likeliest first.")] = 1,
    version: Annotated[Optional[int], typer.Option(help="Which version; head, if not given.")] = None,
    output: Annotated[
        Optional[str], typer.Option("--output", "-o", metavar="FILE", help="A .csv or .json file for all.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    allow_code: AllowCode = None,
) -> None:
    """Answer new inputs: the name of a class and its probability for each, in their order.

    Example: talos predict runs/demo --task lamps photos/ --output answers.csv
    """
    from talos_ray.api import open_run
    from talos_ray.trust.predict import check_output, inputs_of

    if output:  # asked before the work that it would be for
        check_output(output, overwrite=overwrite, inputs=[] if inputs == ["-"] else inputs)
    predictions = open_run(run).predict(inputs_of(inputs), task, version, top_k=top_k, input=input, label=label)
    if output:
        predictions.write(output, overwrite=overwrite)
    if as_json:
        return _print(predictions.as_dict())
    if output:
        say(f"{output}: {len(predictions)} inputs of task {task}, answered by version {predictions.version}")
    else:
        _show_predictions(predictions)
    if score := predictions.accuracy:
        say(f"accuracy {score.value:.3f} ({score.low:.3f} to {score.high:.3f}) on {score.n} labelled inputs")
    say(*predictions.notes)


@app.command(rich_help_panel=USE)
def serve(
    run: Folder,
    port: Annotated[int, typer.Option(help="To listen on.")] = 8000,
    host: Annotated[str, typer.Option(help="To listen on; 0.0.0.0 for other machines too.")] = "127.0.0.1",
    version: Annotated[
        Optional[int], typer.Option(help="Answers where a request names none; head, followed live, if not given.")
    ] = None,
    canary: Annotated[
        Optional[str],
        typer.Option(metavar="VERSION=SHARE", help="Try a version on a share of these requests, like 4=0.1."),
    ] = None,
    replicas: Annotated[int, typer.Option(help="Processes with a model each.")] = 1,
    cpus: Annotated[float, typer.Option(help="CPUs of a replica.")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs of a replica; with one its model is there.")] = 0,
    join: Annotated[
        bool,
        typer.Option("--join", help="One batch for all that wait: faster on a GPU, but not to the last bit `predict`."),
    ] = False,
    verbose: Verbose = False,
    allow_code: AllowCode = None,
) -> None:
    """Answer over HTTP, on Ray Serve: every version and single edit of a run, in one model. Ends when it is
    interrupted.

    Example: talos serve runs/demo --canary 3=0.1
    """
    from talos_ray.serving import deploy
    from talos_ray.serving.record import Canary

    settings = {"version": version, "canary": Canary.of(canary) if canary else None, "join": join}
    size = {"replicas": replicas, "cpus": cpus, "gpus": gpus}
    with deploy.served(
        run, host=host, port=port, allow_code=allow_code or (), verbose=verbose, **size, **settings
    ) as address:
        say(f"{run}: {address}/v1/tasks/TASK:predict; {address}/docs says what it takes; end it with Ctrl-C")
        deploy.wait()


@app.command(rich_help_panel=PROVE)
def verify(
    run: Folder,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also compose every version and compare its fingerprint.")
    ] = False,
    expect: Annotated[
        Optional[str],
        typer.Option(help="The hash of an event that was kept elsewhere: it must be part of the history."),
    ] = None,
    signed_by: Annotated[
        Optional[str],
        typer.Option(help="A public Ed25519 key, as a line or a file: it must have signed all of the history."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check everything below a run's folder; exit code 1 names what was changed, removed or added. Runs nobody's code.

    Example: talos verify runs/demo
    """
    from talos_ray.api import verify as check_all
    from talos_ray.storage.run_folder import RunFolder

    problems = check_all(run, deep=deep, expect=expect, signed_by=signed_by)
    try:
        events, newest = RunFolder(run).last_event()
    except TalosError:  # named among the problems
        events = None
        newest = None
    if as_json:
        _print({"problems": problems, "events": events, "newest": newest})
    elif problems:
        say(*problems)
    else:
        say(f"{run}: every file is as recorded in {events} events; the newest is {newest}")
        say(
            "Keep that hash elsewhere: `talos verify --expect HASH` proves later that nothing was cut off or made anew."
        )
    if problems:
        raise typer.Exit(1)


@app.command(rich_help_panel=PROVE)
def repair(
    run: Folder,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; else only say what would be done.")] = False,
    keep: Annotated[Path, typer.Option(help="New folder for what is taken out of the run.")] = Path("talos-repair"),
    as_json: Json = False,
) -> None:
    """Put in order what earlier releases could leave behind: second events, unwritten pages, strays. Never a delta,
    mask or version.

    Example: talos repair runs/demo
    """
    from talos_ray.storage.run_folder import RunFolder
    from talos_ray.trust.repair import repair as mend

    done, left = mend(RunFolder(run), keep, yes=yes)
    if as_json:
        _print({"done" if yes else "would": done, "left": left})
    else:
        say(*done, *(f"left: {line}" for line in left))
        if done and not yes:
            say("Nothing was changed yet: add --yes to do this.")
        if not done and not left:
            say(f"{run}: nothing to put in order")
    if left or (done and not yes):
        raise typer.Exit(1)


@app.command(rich_help_panel=PROVE)
def sign(
    run: Folder,
    key: Annotated[str, typer.Argument(help="File of a private Ed25519 key, as `ssh-keygen -t ed25519` writes it.")],
    as_json: Json = False,
) -> None:
    """Sign the history as it stands: `talos verify --signed-by` proves later who did, and that nothing was changed
    since.

    Example: talos sign runs/demo ~/.ssh/id_ed25519
    """
    from talos_ray.api import open_run

    event = open_run(run).sign(key).history()[-1]
    if as_json:
        return _print(event)
    say(f"{run}: events 0 to {event['number'] - 1} are signed by {event['key']}")


@app.command(rich_help_panel=PROVE)
def dossier(
    run: Folder,
    version: Annotated[int, typer.Argument(help="A version.")],
    language: Annotated[str, typer.Option(help="en or ja.")] = "en",
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="A new folder.")] = Path("dossier"),
    base_compute: Annotated[
        Optional[float],
        typer.Option(metavar="FLOP", help="Floating-point operations of the base's training, like 1e21, if stated."),
    ] = None,
    licence: Annotated[
        Optional[list[str]], typer.Option(metavar="TASK=LICENCE", help="Licence of a task's data; may be repeated.")
    ] = None,
    base_licence: Annotated[Optional[str], typer.Option(metavar="LICENCE", help="Licence of the base.")] = None,
    as_json: Json = False,
    allow_code: AllowCode = None,
) -> None:
    """Document a modification: what, by whom, on which data, the compute counted, results and limits. To print, and as
    JSON.

    Example: talos dossier runs/demo 1 --language ja --base-compute 1e21 -o dossier
    """
    from talos_ray.api import open_run

    licences = dict(_licence_of(given) for given in licence or ())
    facts = open_run(run).dossier(
        version,
        out,
        language=language,
        base_compute=base_compute,
        licences=licences,
        base_licence=base_licence,
    )
    if as_json:
        return _print(facts)
    compute = facts["compute"]
    say(f"{out}: dossier.html, dossier.json")
    say(f"{compute['in_all']:.3g} FLOP" if compute["in_all"] is not None else f"not counted: {compute['why_not']}")


def _licence_of(given: str) -> tuple[str, str]:
    """TASK=LICENCE as the two."""
    from talos_ray.errors import SpecError

    task, equals, name = given.partition("=")
    if not (task and equals and name):
        raise SpecError(f"--licence is {given!r}; wanted TASK=LICENCE, like land_use=cc-by-4.0; name both")
    return task, name


@app.command(rich_help_panel=TAKE)
def export(
    run: Folder,
    to: Annotated[Path, typer.Argument(help="A new folder.")],
    version: Annotated[Optional[int], typer.Option(help="Which version; head, if not given.")] = None,
    delta: Annotated[bool, typer.Option("--delta", help="Only the weights that changed.")] = False,
    peft: Annotated[
        bool, typer.Option("--peft", help="As an adapter for peft (SHiRA), where only linear layers' weights changed.")
    ] = False,
    mergekit: Annotated[
        bool, typer.Option("--mergekit", help="As the models and the configuration that mergekit makes it of.")
    ] = False,
    task: Annotated[Optional[str], typer.Option(help="With --peft: this task's edit alone.")] = None,
    as_json: Json = False,
    allow_code: AllowCode = None,
) -> None:
    """Write a version with its card: a model that its own library loads, or what changed; also for peft and mergekit.

    Example: talos export runs/demo exported
    """
    from talos_ray.api import open_run

    names = open_run(run).export(to, version, delta_only=delta, peft=peft, mergekit=mergekit, task=task)
    if as_json:
        return _print(names)
    say(f"{to}: {', '.join(names)}")


@app.command(rich_help_panel=TAKE)
def push(
    run: Folder,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A repository of the Hugging Face Hub.")],
    version: Annotated[
        Optional[int], typer.Option(help="Which version; head, if not given and none is kept aside.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="The whole model, instead of the weights that changed.")
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="Everybody may read it, the run's record too.")] = False,
    as_json: Json = False,
    allow_code: AllowCode = None,
) -> None:
    """Send a version to the Hugging Face Hub, privately: weights, heads, card, report and record.

    Example: talos push runs/demo me/demo-edited
    """
    from dataclasses import asdict

    from talos_ray.api import open_run

    with _aside(as_json):
        pushed = open_run(run).push(repo, version, whole=whole, public=public)
    if as_json:
        return _print(asdict(pushed))
    who = "private" if pushed.private else "public"
    say(
        f"{pushed.address}: version {pushed.version}, {who}, {len(pushed.files)} files",
        f"commit {pushed.commit}; to take it: talos pull {pushed.repo}@{pushed.commit} FOLDER",
    )


@app.command(rich_help_panel=TAKE)
def pull(
    name: Annotated[
        str, typer.Argument(metavar="OWNER/NAME[@REVISION]", help="What was pushed; a branch, tag or commit of it.")
    ],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Also make the model, with its base, and compare its fingerprint.")
    ] = False,
    as_json: Json = False,
    allow_code: AllowCode = None,
) -> None:
    """Take a pushed version from the Hugging Face Hub and check every byte of it; exit code 2 names what was changed.

    Example: talos pull me/demo-edited demo-edited
    """
    from dataclasses import asdict

    from talos_ray.api import pull as take

    with _aside(as_json):
        pulled = take(name, folder, deep=deep)
    if as_json:
        return _print(asdict(pulled))
    say(
        f"{pulled.folder}: version {pulled.version} of {pulled.repo} at commit {pulled.commit}; every file is as it "
        "was pushed",
        f"model {pulled.model}{', made and compared' if deep else ''}",
    )


@app.command(rich_help_panel=PROVE)
def robustness(
    run: Folder,
    as_json: Json = False,
    verbose: Verbose = False,
    allow_code: AllowCode = None,
) -> None:
    """Score base and head on spoilt test inputs: is the edited model more fragile?

    Example: talos robustness runs/demo
    """
    from talos_ray.api import open_run

    corrupted = open_run(run).robustness(verbose=verbose)
    if as_json:
        _print(corrupted)
        return
    table = Table("task", "test data", "base", "merged")
    for task, kinds in corrupted.items():
        for name, scores in kinds.items():
            base = scores["base"]["value"]
            merged = scores["merged"]["value"]
            _row(table, task, name, f"{base:.3f}", f"{merged:.3f}")
    _show(table)


@app.command(rich_help_panel=PROVE)
def watch(
    run: Folder,
    folder: Annotated[Path, typer.Argument(help="Where new data arrive, in files named after a task.")],
    input: InputColumn = None,
    label: LabelColumn = None,
    as_json: Json = False,
    allow_code: AllowCode = None,
) -> None:
    """Score head on data that has arrived since the last time, and keep the scores. Exit code 4: the gate no longer
    holds. For cron.

    Example: talos watch runs/demo incoming
    """
    from talos_ray.api import open_run

    events = open_run(run).watch(folder, input=input, label=label)
    if as_json:
        _print(events)
    elif not events:
        say(f"nothing new in {folder}")
    else:
        for event in events:
            _show_watched(event)
    # What cannot be told is no alarm: a few inputs a night would raise one every morning.
    if any(event["gate"] == "fail" for event in events):
        sys.exit(DRIFTED)


def _show_watched(event: Mapping[str, Any]) -> None:
    """Print what one file of new data says of head, and what its gate says of that."""
    base = event["scores"]["base"]
    now = event["scores"]["now"]
    say(
        f"{event['data']}: {event['task']} {now['value']:.3f} ({now['low']:.3f} to {now['high']:.3f}), base "
        f"{base['value']:.3f}, n {now['n']}: {event['gate']}"
    )
    for why in (*event["why"], *event.get("notes", ())):
        say(f"  {why}")


@app.command("log", rich_help_panel=PROVE)
def log_(
    run: Folder,
    as_json: Json = False,
) -> None:
    """Show the history: who did what, when. Fails if an event was changed or removed.

    Example: talos log runs/demo
    """
    from talos_ray.api import open_run

    opened = open_run(run)
    events = opened.history()
    if as_json:
        _print(events)
        return
    table = Table("number", "time (UTC)", "user", "operation", "version", "why")
    for event in events:
        _row(
            table,
            str(event["number"]),
            event["time"][:19],
            f"{event['user']}@{event['host']}",
            event["operation"],
            str(event.get("version", "")),
            _why(event),
        )
    _show(table)
    say(f"newest: {opened.folder.last_event()[1]}")


def _show_predictions(predictions: Predictions) -> None:
    """Print the first ones as a table."""
    heads = ["input"]
    for rank in range(predictions.best.shape[1]):
        number = f" {rank + 1}" if rank else ""  # the answer itself has none
        heads += [f"label{number}", f"score{number}"]
    labelled = predictions.wanted is not None
    if labelled:
        heads.append("given")
    table = Table(*heads)
    rows = predictions.rows()
    for row in rows[:SHOWN]:
        cells = [row["input"]]
        for answer in row.get("top", [row]):
            cells += [answer["label"], f"{answer['score']:.3f}"]
        if labelled:
            cells.append(row["given"] or "")
        _row(table, *cells)
    _show(table)
    if len(rows) > SHOWN:
        say(f"and {len(rows) - SHOWN} more; --output FILE.csv has all")


def _why(event: dict[str, Any]) -> str:
    """What a person gave as the reason, and who answers for it; of a worker that was lost, what befell it."""
    by = f"{event['by']}: " if isinstance(event.get("by"), str) else ""
    reason = event.get("reason")
    return by + reason if isinstance(reason, str) else by.removesuffix(": ")


def _show_change(difference: dict[str, Any], as_json: bool) -> None:
    """Print a `Run.diff`."""
    if as_json:
        _print(difference)
        return
    first, second = difference["versions"]
    for task, (before, after) in difference["coefficients"].items():
        if before != after:
            say(f"coefficient of {task}: {before:g} -> {after:g}")
    table = Table("task", f"version {first}", f"version {second}", "became right", "became wrong", "n", "p (McNemar)")
    for task, change in difference["tasks"].items():
        _row(
            table,
            task,
            f"{change['before']:.3f}",
            f"{change['after']:.3f}",
            str(change["won"]),
            str(change["lost"]),
            str(change["n"]),
            f"{change['p']:.2g}",
        )
    _show(table)
    say("p: how often as large a difference would come by chance; below 0.05 it is hardly that.")
    for note in difference.get("notes", ()):
        say(note)
    if difference["not comparable"]:
        say(f"not asked in both on the same data: {', '.join(difference['not comparable'])}")


def _task(given: str) -> str | dict[str, Any]:
    """A recipe's name as it is, or what a YAML file says of a task."""
    from talos_ray.spec import load_task_file

    return load_task_file(given) if Path(given).suffix in (".yaml", ".yml") else given


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print lines for a person; nothing in them moves the cursor or begins a new one."""
    for line in lines:
        print(plain(line), file=file or sys.stdout)


def _row(table: Table, *cells: str) -> None:
    table.add_row(*map(plain, cells))


def _show(table: Table) -> None:
    """In a log or a pipe the width is fixed. What stands in brackets is text, and no markup of ours."""
    Console(width=None if sys.stdout.isatty() else 110, markup=False, emoji=False, highlight=False).print(table)


def _aside(as_json: bool) -> AbstractContextManager[object]:
    """Progress goes to standard error where standard output is to hold JSON."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def _print(value: object) -> None:
    """As JSON, keys in order: two outputs can be compared line by line."""
    print(json.dumps(value, indent=1, sort_keys=True))


def show(run: Run, as_json: bool = False) -> None:
    """Print a run's head as the table of target and control scores, or as JSON; exit code 3 if a newer version is kept
    aside."""
    if as_json:
        _print(run.version.as_dict())
    else:
        _show_scores(run)
    if run.held():
        from talos_ray.trust.versions import standing

        number = run.folder.versions()[-1]
        say(
            standing(run.folder, number),
            f"to put it in force all the same: talos approve {run.path} {number} --by NAME --reason TEXT",
            file=sys.stderr if as_json else sys.stdout,
        )
        # A script that goes on with the new model has to notice that head is not it.
        sys.exit(HELD)


def _show_class_scores(run: Run, task: str, as_json: bool) -> None:
    from talos_ray.core.metrics import BINS, mostly_taken_for

    scores = run.class_scores(task)
    classes = run.classes[task]
    if as_json:
        return _print({"task": task, "version": run.head, "classes": classes, **scores.as_dict()})
    title = plain(f"{run.path}, version {run.head}: {task} on test data")
    table = Table("class", "inputs", "recall", "precision", "mostly taken for", title=title, title_justify="left")
    for place, (name, row) in enumerate(zip(classes, scores.confusion, strict=True)):
        recall = _figure(scores.recall[place])
        precision = _figure(scores.precision[place])
        _row(table, name, str(sum(row)), recall, precision, mostly_taken_for(row, place, classes))
    _show(table)
    say(f"balanced accuracy (mean recall) {scores.balanced_accuracy:.3f}, macro F1 {scores.macro_f1:.3f}")
    if scores.calibration_error is not None:
        say(f"expected calibration error {scores.calibration_error:.3f}, in {BINS} bins of equal width")
    if len(classes) <= MATRIX:
        say("", "answered (columns) of each class (rows):")
        matrix = Table("", *map(plain, classes))
        for name, row in zip(classes, scores.confusion, strict=True):
            _row(matrix, name, *map(str, row))
        _show(matrix)


def _figure(value: float | None) -> str:
    """Three digits; nothing where nothing was measured."""
    return "" if value is None else f"{value:.3f}"


def _show_scores(run: Run) -> None:
    version = run.version
    dense = version.baseline
    # A column for what no task has would be an empty one.
    measured = {kind for scores in version.scores.values() for kind in scores.measured()}
    kinds = [kind for kind in ("base", "probe", "single", "merged", "merged_words") if kind in measured]
    title = plain(f"{run.path}, version {version.number}: accuracy on test data")
    table = Table(title=title, title_justify="left")
    table.add_column("task", justify="left")
    table.add_column("coefficient", justify="right")
    for kind in kinds:
        # The merged model under the frozen heads.
        table.add_column("words' heads" if kind == "merged_words" else kind, justify="right")
    if dense:
        table.add_column("dense merged", justify="right")
    marks = {"control": " (control)", "forgotten": " (forgotten)", "other": " (not in it)"}
    for task, scores in version.scores.items():
        mark = marks.get(version.kind_of(task), "")
        by_kind = scores.measured()
        cells = [f"{by_kind[kind].value:.3f}" if kind in by_kind else "" for kind in kinds]
        if dense:
            cells.append(f"{dense.scores[task].merged.value:.3f}")
        _row(table, task + mark, version.coefficient_of(task), *cells)
    if version.summary.merged is not None:
        means = [_figure(version.summary.mean(kind)) for kind in kinds]
        if dense:
            means.append(f"{dense.summary.merged:.3f}")
        table.add_section()
        _row(table, "mean of targets", "", *means)
    _show(table)
    for task, metric in version.metrics.items():
        say(f"score of {task}: {metric.replace('_', ' ')}, the mean over its classes")
    _show_costs(version)
    say(f"report: {run.folder.store.path('report/index.html')}")


def _show_costs(version: Version) -> None:
    """Print what the edit does to control tasks, and what it took beside a dense one."""
    for control, share in version.summary.control_kept.items():
        say(f"control {control} keeps {share:.1%} of its base score")
    dense = version.baseline
    if dense:
        sparse_cost = version.cost
        dense_cost = dense.cost
        assert sparse_cost is not None and dense_cost is not None  # both were trained
        say(
            f"training {sparse_cost.train_seconds:.0f} s, dense {dense_cost.train_seconds:.0f} s; deltas "
            f"{sparse_cost.delta_bytes / 1e6:.1f} MB, dense {dense_cost.delta_bytes / 1e6:.1f} MB"
        )


def guard(program: str, work: Callable[[], object]) -> int:
    """Exit code of `work()`: a TalosError is printed as it is, without a traceback, and gives 2; an interrupt gives
    130."""
    try:
        work()
    except TalosError as error:
        say(*f"{program}: {error}".split("\n"), file=sys.stderr)
        return 2
    except OSError as error:  # a path of the user's, and no mistake of ours that a traceback would explain
        say(f"{program}: {error}; check that the path exists and can be read and written", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say(
            f"{program}: interrupted; finished stages and tasks are kept; run the same command again to go on",
            file=sys.stderr,
        )
        return 130
    return 0


def main() -> None:
    """Entry point of `talos`."""
    sys.exit(guard("talos", app))


if __name__ == "__main__":
    main()
