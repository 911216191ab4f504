"""docs/quickstart.md, line by line: its commands, files and Python, in an empty folder, on the whole demo."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/quickstart.md"
BIN = Path(sys.executable).parent


def steps() -> list[tuple[str, str, int]]:
    """(language, text, exit code): a shell line each, a Python block each, a file each."""
    found = []
    for language, text in re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for line in text.splitlines() if language == "sh" else [text]:
            code = re.search(r"# exit code (\d)", line)
            found.append((language, line, int(code[1]) if code else 0))
    return found


def test_the_page_has_every_step_of_a_users_walk():
    said = "\n".join(text for _, text, _ in steps())
    for word in ("demo", "add", "forget", "edit", "approve", "compare", "rollback", "export", "verify"):
        assert re.search(rf"^talos {word}\b", said, re.MULTILINE), word
    assert "create_model_from_pretrained" in said


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_walk_goes_as_the_page_says(tmp_path):
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
    printed = ""
    for language, text, code in steps():
        if language == "yaml":
            (tmp_path / re.match(r"# (\S+)\n", text)[1]).write_text(text)
            continue
        command = ["bash", "-c", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200)
        assert done.returncode == code, text + done.stdout[-2000:] + done.stderr[-2000:]
        printed += done.stdout
    assert "version 4 is kept aside, head is still 3" in printed and "every file is as recorded" in printed
    status = subprocess.run(
        ["talos", "status", "runs/demo", "--json"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert status.returncode == 0 and json.loads(status.stdout)["version"] == 1
    assert (
        "対象タスク" in (tmp_path / "report-ja.html").read_text() and (tmp_path / "changed.csv").stat().st_size > 1000
    )
