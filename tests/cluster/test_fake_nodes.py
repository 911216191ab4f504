"""Ray's autoscaler with nodes that it makes up: a run waits for them, uses them, and they go when nothing is left to do."""

import json
import sys
from pathlib import Path

import pytest
from hosts import HOME, machines

SCRIPT = Path(__file__).parent / "fake_nodes.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_nodes_come_are_used_and_go():
    with machines() as (machine,):
        script = f"RAY_AUTH_MODE=disabled PATH={Path(sys.executable).parent}:$PATH python {SCRIPT} {HOME}"
        told = machine.run(script, timeout=1200)
    lines = [line for line in told.stdout.splitlines() if line.startswith('{"version"')]
    assert lines, told.stdout[-6000:]
    found = json.loads(lines[-1])
    # The head alone, which has no CPU to work with; then a node for each of two tasks; then the head alone again.
    assert found == {"version": 1, "first": 1, "most": 3, "last": 1}
