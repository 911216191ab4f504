"""The main job: `python jobs/edit_all_tasks.py --spec tasks.yaml`, alone or through `ray job submit`.

Without `--spec` it runs the embedded demo. The exit code is the job's.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a job's working directory need not be installed

from talos_ray.cli import DEMO_SPEC, guard, show


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", default=str(DEMO_SPEC), help="YAML spec (default: the embedded demo)")
    parser.add_argument("--output", help="run folder, instead of the spec's")
    parser.add_argument("-v", "--verbose", action="store_true", help="show Ray's own messages too")
    args = parser.parse_args()
    from talos_ray import edit, load_spec

    return guard(
        "edit_all_tasks",
        lambda: show(
            edit(spec=load_spec(args.spec, **({"output": args.output} if args.output else {})), verbose=args.verbose)
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
