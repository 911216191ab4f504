"""The Python API on two tasks of the embedded demo: edit, look, undo, and put it back. About a minute."""

import talos_ray


def main() -> None:
    run = talos_ray.edit(
        tasks=["demo:pointers", "demo:lighting"],
        control=["demo:coloured_shapes"],
        output="runs/two_tasks",
        calibration={"samples_per_task": 64, "shards_per_task": 2, "rounds": 2},
        train={"steps": 40, "batch_size": 48, "lr": 1.2e-3, "warmup_steps": 5},
        search={"steps": 60},
    )
    for task, scores in run.scores.items():
        print(task, {kind: round(s["value"], 3) for kind, s in scores.items()})
    print("coefficients", run.coefficients)
    print("weights that may change:", run.mask.k, "of", run.mask.layout.total)

    edited = run.model().module  # an open_clip model, checked bitwise against the version's fingerprint
    print("weights in all:", sum(p.numel() for p in edited.parameters()))

    run.rollback(0, reason="to show that it can be undone")
    run.model()  # the base again, bitwise
    run.rollback(1, reason="and put back")


if __name__ == "__main__":
    main()
