"""The `talos` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.table import Table

from talos_ray.errors import TalosError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Learn, merge and undo many tasks in one pretrained model.",
)
DEMO_SPEC = Path(__file__).parent / "demo" / "spec.yaml"

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Ray's own messages too.")]
Reason = Annotated[Optional[str], typer.Option(help="Why; kept in the history.")]
Folder = Annotated[str, typer.Argument(help="A run folder.")]
Output = Annotated[Optional[str], typer.Option("--output", "-o", help="Run folder, instead of the spec's.")]


@app.command()
def edit(
    spec: Annotated[Path, typer.Argument(help="A YAML spec; see examples/.")],
    output: Output = None,
    verbose: Verbose = False,
) -> None:
    """Do whatever of a spec is not done yet: calibrate, train, merge, verify.

    Example: talos edit examples/demo.yaml
    """
    from talos_ray.api import edit as run
    from talos_ray.spec import load_spec

    show(run(spec=load_spec(spec, **({"output": output} if output else {})), verbose=verbose))


@app.command()
def demo(output: Output = "runs/demo", verbose: Verbose = False) -> None:
    """Run the embedded example: a tiny CLIP, eight tasks, one control task. Needs no download.

    Example: talos demo
    """
    edit(DEMO_SPEC, output, verbose)


@app.command()
def status(
    run: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a run's head: coefficients, target and control scores.

    Example: talos status runs/demo
    """
    from talos_ray.api import open_run

    found = open_run(run)
    if as_json:
        print(json.dumps(found.version, indent=1, sort_keys=True))
    else:
        show(found)


@app.command()
def rollback(
    run: Folder,
    version: Annotated[
        Optional[int], typer.Argument(help="Version to go back to; the one before head, if not given.")
    ] = None,
    reason: Reason = None,
) -> None:
    """Move head to an earlier version, exactly. Can itself be rolled back.

    Example: talos rollback runs/demo 0 --reason "control fell"
    """
    from talos_ray.api import open_run

    found = open_run(run)
    before = found.head
    found.rollback(version, reason).model()
    print(
        f"{run}: head was version {before}, is now version {found.head}; the model's fingerprint {found.version['model'][:12]} was checked bitwise"
    )


@app.command()
def add(
    run: Folder,
    task: Annotated[str, typer.Argument(help="A YAML file that describes one task, or the name of a recipe.")],
    verbose: Verbose = False,
) -> None:
    """Train one more task on the run's mask and find all coefficients anew. The other deltas stay as they are.

    Example: talos add runs/demo invoices.yaml
    """
    from talos_ray.api import open_run
    from talos_ray.spec import load_task_file

    show(open_run(run).add(load_task_file(task) if Path(task).suffix in (".yaml", ".yml") else task, verbose=verbose))


@app.command()
def merge(
    run: Folder,
    tasks: Annotated[list[str], typer.Argument(help="Target tasks of the run.")],
    reason: Reason = None,
    verbose: Verbose = False,
) -> None:
    """Merge some of a run's tasks, with coefficients of their own. Trains nothing.

    Example: talos merge runs/demo street_numbers road_signs
    """
    from talos_ray.api import open_run

    show(open_run(run).merge(tasks, reason=reason, verbose=verbose))


@app.command()
def remove(
    run: Folder,
    task: Annotated[str, typer.Argument(help="A task that head holds.")],
    reason: Reason = None,
    verbose: Verbose = False,
) -> None:
    """Take one task out of head, exactly. The others keep their coefficients.

    Example: talos remove runs/demo lighting --reason "no longer needed"
    """
    from talos_ray.api import open_run

    show(open_run(run).remove(task, reason=reason, verbose=verbose))


@app.command()
def forget(
    run: Folder,
    task: Annotated[str, typer.Argument(help="A target task of the run.")],
    keep: Annotated[float, typer.Option(help="Share of its score that every other task must keep.")] = 0.95,
    at_most: Annotated[
        Optional[float], typer.Option(help="Accuracy that counts as forgotten; 0.05 above chance, if not given.")
    ] = None,
    reason: Reason = None,
    verbose: Verbose = False,
) -> None:
    """Make head forget one task, while all control tasks and all it has learnt hold. Changes nothing if that cannot be.

    Example: talos forget runs/demo road_signs --keep 0.95
    """
    from talos_ray.api import open_run

    show(open_run(run).forget(task, keep, at_most=at_most, reason=reason, verbose=verbose))


@app.command("log")
def log_(
    run: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the history: who did what, when. Fails if an event was changed or removed.

    Example: talos log runs/demo
    """
    from talos_ray.api import open_run

    events = open_run(run).history()
    if as_json:
        print(json.dumps(events, indent=1, sort_keys=True))
        return
    table = Table("number", "time (UTC)", "user", "operation", "version")
    for e in events:
        table.add_row(
            str(e["number"]), e["time"][:19], f"{e['user']}@{e['host']}", e["operation"], str(e.get("version", ""))
        )
    Console().print(table)


def show(run) -> None:
    """Print a run's head as the table of target and control scores."""
    from talos_ray.storage.run_folder import kind_of

    version = run.version
    table = Table(title=f"{run.path}, version {version['version']}: accuracy on test data", title_justify="left")
    dense = version.get("baseline")
    for column in ("task", "coefficient", "base", "single", "merged", *(["dense merged"] if dense else [])):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, s in version["scores"].items():
        kind = {"control": " (control)", "forgotten": " (forgotten)", "other": " (not in it)"}.get(
            kind_of(version, task), ""
        )
        cells = [f"{s[c]['value']:.3f}" if c in s else "" for c in ("base", "single", "merged")]
        alpha = version["coefficients"].get(task)
        row = [task + kind, "" if alpha is None else f"{alpha:.2f}", *cells]
        table.add_row(*row, *([f"{dense['scores'][task]['merged']['value']:.3f}"] if dense else []))
    m = version["summary"]
    if "merged" in m:
        means = [f"{m['zero_shot']:.3f}", f"{m['single']:.3f}" if "single" in m else "", f"{m['merged']:.3f}"]
        table.add_section()
        table.add_row("mean of targets", "", *means, *([f"{dense['summary']['merged']:.3f}"] if dense else []))
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    for control, kept in m["control_kept"].items():
        print(f"control {control} keeps {kept:.1%} of its base score")
    if dense:
        a, b = version["cost"], dense["cost"]
        print(
            f"training {a['train_seconds']:.0f} s, dense {b['train_seconds']:.0f} s; deltas {a['delta_bytes'] / 1e6:.1f} MB, dense {b['delta_bytes'] / 1e6:.1f} MB"
        )
    print(f"report: {run.folder.store.path('report/index.html')}")


def guard(program: str, work: Callable[[], object]) -> int:
    """Exit code of `work()`: a TalosError is printed as it is, without a traceback, and gives 2; an interrupt gives 130."""
    try:
        work()
    except TalosError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{program}: {error}; check that the path exists and can be read and written", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
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
