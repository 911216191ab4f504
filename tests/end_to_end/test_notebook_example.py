"""examples/first_edit.ipynb, cell by cell, in Jupyter's own kernel."""

import sys
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from talos_ray import open_run

NOTEBOOK = Path(__file__).parents[2] / "examples/first_edit.ipynb"


class Kernel(AsyncKernelManager):
    """The Python that the tests run in, whatever kernels somebody has installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
        )


def test_no_output_is_kept():
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_the_notebook_goes_through_and_shows_what_it_tells(tmp_path):
    book = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(book, km=Kernel(), timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    shown = {cell.source.splitlines()[-1]: [o["data"] for o in cell.outputs if "data" in o] for cell in cells}

    run = open_run(str(tmp_path / "runs/first_edit"))
    (table,) = shown["run"]
    assert table["text/html"] == run._repr_html_() and run.head == 1  # rolled back, and forth again
    (figure,) = shown["run.plot.scores()"]
    assert "image/png" in figure
    (change,) = shown["run.diff(0, 1)"]
    assert change["text/html"] == run.diff(0, 1)._repr_html_()
    (labels,) = shown["answers.labels[:5]"]
    answers = run.predict("demo:pointers", task="pointers", label="label")
    assert labels["text/plain"] == str(answers.labels[:5])
    assert answers.accuracy.value > run.scores["pointers"]["base"]["value"]  # it has learnt something
    (undone,) = [data for last, data in shown.items() if last.startswith("run.head, ")]
    assert undone[0]["text/plain"] == "(0, True)"
    (whole,) = [data for last, data in shown.items() if last.startswith("run.verify")]
    assert whole[0]["text/plain"] == "[]"
