"""Files that a user asks for: which names are refused, and with what words."""

import os

import pytest

from talos_ray import SpecError, user_files
from talos_ray.orchestrate import cluster
from talos_ray.trust.predict import check_output


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("~nouser/x.csv", "output '~nouser/x.csv' cannot be a file: Could not determine home directory"),
        ("x" * 300 + ".csv", "cannot be a file: File name too long"),
        ("x" * 300 + "/x.csv", "cannot be a file: File name too long"),
        ("s3://b/x.csv", "output 's3://b/x.csv' is a URI; wanted a local path"),
        ("file:///b/x.csv", "output 'file:///b/x.csv' is a URI; wanted a local path"),
        ("a\0.csv", "cannot be a file: embedded null byte"),
        ("loop/x.csv", "cannot be a file|its folder does not exist"),
        ("nowhere/x.csv", "its folder does not exist"),
        (".", "is a folder"),
    ],
    ids=lambda value: value[:20].replace("\0", "0"),
)
def test_names_that_no_file_can_have_are_refused_in_a_line(tmp_path, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    with pytest.raises(SpecError, match=told) as caught:
        user_files.check_free(name)
    assert len(str(caught.value)) < 400
    with pytest.raises(SpecError):
        user_files.write(name, b"", overwrite=True)


def test_what_is_read_is_not_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("in.csv", "old.csv", "data/test.csv"):
        (tmp_path / name).write_text("text\nhello\n")
    os.symlink("in.csv", "link.csv")
    os.link("in.csv", "same.csv")
    for name in ("in.csv", "./in.csv", "link.csv", "same.csv", tmp_path / "data" / "test.csv"):
        with pytest.raises(SpecError, match="is read as input '(in.csv|data)'; wanted another file"):
            check_output(name, overwrite=True, inputs=["nowhere", "x" * 300, "in.csv", "data"])
    check_output("old.csv", overwrite=True, inputs=["in.csv", "data"])
    check_output("new.csv", inputs=["in.csv"])


def test_folders_of_an_export_and_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("full", "empty", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    user_files.check_new_folder("empty")
    user_files.check_new_folder("empty/new/er")
    for name, told in (
        ("full", "output 'full' is not empty"),
        ("full/mine.txt", "mine.txt' is no folder"),
        ("full/mine.txt/x", "mine.txt' is no folder"),
        ("s3://b/x", "is a URI; wanted a local folder"),
        ("s3:/b/x", "is a URI"),
        ("a\0", "cannot be a folder: embedded null byte"),
        ("~nouser/x", "cannot be a folder: Could not determine home directory"),
    ):
        with pytest.raises(SpecError, match=told):
            user_files.check_new_folder(name)
    for output in (f"FILE://{tmp_path}/data/run", "File:///proc/x"):
        with pytest.raises(SpecError, match="lies in the data|belongs to the system"):
            cluster.check_output(output, ["data"])
