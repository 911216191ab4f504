"""The benchmark keeps what it has measured, whatever breaks after it."""

import json
import sys

import pytest
from torch import nn

from jobs import benchmark
from jobs.measuring import row
from jobs.peers import compare as peers


def test_rows_are_kept_when_a_later_part_breaks(tmp_path, monkeypatch, capsys):
    def breaks(*_):
        raise RuntimeError("no such peer")
        yield

    measured = row("one", [2.0, 2.0], [6.0, 6.0], "ms", "another", ">= 2")
    monkeypatch.setattr(benchmark, "compose", lambda *_: iter([measured]))
    monkeypatch.setattr(benchmark, "tower", lambda: None)
    monkeypatch.setattr(benchmark, "roofline", lambda repeats: None)
    monkeypatch.setattr(benchmark, "calibration", breaks)
    file = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--json", str(file), "--only", "compose", "calibration"])
    with pytest.raises(RuntimeError):
        benchmark.main()
    (kept,) = json.loads(file.read_text())
    assert kept["name"] == "one" and kept["ratio"] == 3.0 and kept["holds"]
    assert "one: 2.0 / 6.0 ms: 3.0 (>= 2)" in capsys.readouterr().out


def test_a_peer_that_does_not_run_is_a_line_and_costs_no_other(tmp_path, monkeypatch, capsys):
    def installed(name, home):
        if name == "mergekit":
            raise peers.NotCompared("it cannot be installed here: no such package")
        peers.call(sys.executable, "-c", "import there_is_no_such_module")

    monkeypatch.setattr(peers, "installed", installed)
    assert list(peers.compare(1, tmp_path, nn.Linear(40, 40))) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mergekit: not compared, it cannot be installed here: no such package"
    assert [line.partition(":")[0] for line in lines] == ["mergekit", "fusion-bench", "peft"]
    assert all(line.endswith("No module named 'there_is_no_such_module'") for line in lines[1:])
