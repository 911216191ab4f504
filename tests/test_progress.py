"""What a person sees while tasks train."""

import io

from rich.console import Console

from talos_ray.progress import MOST_NAMED, MOST_TASKS, Progress


def view(n: int, training: int) -> str:
    progress = Progress(Console(file=io.StringIO(), width=120))
    progress.begin("train")
    state = {
        f"sparse/t{i}": {
            "step": 3,
            "steps": 10,
            "loss": 0.5,
            "state": "training" if i < training else "waiting",
            "worker": i,
        }
        for i in range(n)
    }
    progress.training(state, 0)
    assert progress.first_step is not None
    progress.last_line = 0.0
    progress.training(state, 0)
    assert progress.console.file.getvalue().count("worker ") == min(training, MOST_NAMED)
    assert "worker 1 sparse/t1 3/10" in progress.console.file.getvalue()
    progress.console.file.truncate(0)
    progress.console.print(progress._view())
    return progress.console.file.getvalue()


def test_a_few_tasks_are_all_shown():
    assert all(f"sparse/t{i} " in view(8, 2) for i in range(8))


def test_of_a_thousand_tasks_those_that_train_are_shown():
    few = view(1000, 3)
    assert few.count("loss 0.5") == 3 and "and 997 more" in few
    many = view(1000, 200)
    assert many.count("loss 0.5") == MOST_TASKS and f"and {1000 - MOST_TASKS} more" in many
