"""The main job: `python jobs/edit_all_tasks.py --spec tasks.yaml`, alone or through `ray job submit`.

Without `--spec` it runs the embedded demo. The exit code is the job's: 0 also where the gate keeps the new version aside, which the
log, the record and `talos status` say: whoever starts jobs would take another code for a failure, and start a cluster again.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a job's working directory need not be installed

from talos_ray.cli import DEMO_SPEC, HELD, guard, show


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", default=str(DEMO_SPEC), help="YAML spec (default: the embedded demo)")
    parser.add_argument("--output", help="run folder, instead of the spec's")
    parser.add_argument("-v", "--verbose", action="store_true", help="show Ray's own messages too")
    parser.add_argument(
        "--strict-exit", action="store_true", help=f"exit with {HELD} where the gate keeps the new version aside"
    )
    args = parser.parse_args()
    from talos_ray import edit, load_spec

    def work() -> None:
        spec = load_spec(args.spec, **({"output": args.output} if args.output else {}))
        show(edit(spec=spec, verbose=args.verbose))

    try:
        return guard("edit_all_tasks", work)
    except SystemExit as ended:
        if ended.code == HELD and not args.strict_exit:
            return 0
        raise


if __name__ == "__main__":
    sys.exit(main())
