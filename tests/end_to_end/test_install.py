"""What a user installs: the wheel, in an environment of its own, from a folder that has nothing of this repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_BYTES = 25_000_000


def done(command: list, cwd: Path, **more: str) -> str:
    """Standard output of a command that is to end well, without this repository on its path."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ended = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env | more, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built of a copy: a `build/` that lies here would be taken into it."""
    copy = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "talos_ray", copy / "talos_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    out = tmp_path_factory.mktemp("wheel")
    done([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, copy], out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The commands of an environment that has the wheel; what it depends on lies in that of the tests."""
    place = tmp_path_factory.mktemp("environment")
    done([sys.executable, "-m", "venv", "--without-pip", place], place)
    install = ["install", "--no-deps", "--no-index", wheel]
    done([sys.executable, "-m", "pip", "--python", place / "bin/python", *install], place)
    own = done([place / "bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], place).strip()
    Path(own, "tests.pth").write_text(sysconfig.get_path("purelib"))  # behind its own, and no .pth in it counts
    return place / "bin"


@pytest.mark.slow
def test_the_wheel_is_small_and_ends_the_quick_spec(wheel, installed, tmp_path):
    assert wheel.stat().st_size < MOST_BYTES
    where = done([installed / "python", "-c", "import talos_ray; print(talos_ray.__file__)"], tmp_path).strip()
    assert Path(where).is_relative_to(installed.parent)
    shutil.copy(ROOT / "examples/quick.yaml", tmp_path / "spec.yaml")
    done([installed / "talos", "edit", "spec.yaml"], tmp_path, PATH=f"{installed}{os.pathsep}{os.environ['PATH']}")
    status = json.loads(done([installed / "talos", "status", "runs/quick", "--json"], tmp_path))
    assert status["version"] == 1 and set(status["scores"]) == {"pointers", "lighting", "coloured_shapes"}
    assert "every file is as recorded" in done([installed / "talos", "verify", "runs/quick", "--deep"], tmp_path)


def test_a_shell_completes_its_commands(installed, tmp_path):
    """As docs/integrations.md says; the variables are what the shell's function sets."""
    asked = {"_TALOS_COMPLETE": "complete_bash", "COMP_WORDS": "talos ro", "COMP_CWORD": "1"}
    assert set(done([installed / "talos"], tmp_path, **asked).split()) == {"rollback", "robustness"}
