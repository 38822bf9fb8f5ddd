"""An evaluation's output: names that stay inside, files of others untouched, whole or not there."""

import json
import multiprocessing
import os

import pytest

from ivg.errors import UserError
from ivg.evaluation.output_folder import OutputFolder, check_name, open_output, open_result


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "../../x",
        "/x",
        "a/b",
        "a\\b",
        "a\0b",
        "a\nb",
        "\x1b[2J",
        ".hidden",
        "é" * 100,
        "\ud800",
    ],
)
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(UserError, match=r"generator .* cannot name a file of its own"):
        check_name(name, "generator")


def test_a_name_that_stands_there_already_is_refused():
    assert check_name("alpaca", "generator", reserved=["alpaca.json"]) == "alpaca"
    with pytest.raises(UserError, match="cannot name a file of its own"):
        check_name("alpaca.json", "generator", reserved=["alpaca.json"])


def test_files_of_others_are_never_written_over(tmp_path):
    (tmp_path / "mine.json").write_text("keep")
    with open_output(tmp_path, "result.json", "{") as output:
        output.write_json({"a": 1}, "result.json")
        output.write_json({"a": 2}, "result.json")
        with pytest.raises(UserError, match=r"mine\.json: lies there, and no evaluation wrote it"):
            output.write_text("gone", "mine.json")
    assert (tmp_path / "mine.json").read_text() == "keep"
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 2}
    with open_output(tmp_path, "result.json", "{") as again:  # and the next evaluation knows both
        again.write_json({"a": 3}, "result.json")
        with pytest.raises(UserError, match="lies there"):
            again.write_text("gone", "mine.json")


def test_a_folder_of_an_earlier_version_is_recognised_by_its_result(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    (tmp_path / "base.jsonl").write_text("old")
    with open_output(tmp_path, "sweep.json", "{") as output:
        output.write_text("new", "base.jsonl")
    assert (tmp_path / "base.jsonl").read_text() == "new"


def test_a_link_stays_a_link(tmp_path):
    with open_output(tmp_path, "x", "{") as output:
        output.write_text("one", "a.txt")
        (tmp_path / "a.txt").rename(tmp_path / "elsewhere")
        (tmp_path / "a.txt").symlink_to("elsewhere")
        output.write_text("two", "a.txt")
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "two"


def hold(folder, started, end):
    with open_output(folder, "x", "{"):
        started.set()
        end.wait(60)


def test_two_evaluations_do_not_share_a_folder_and_a_killed_one_stops_nobody(tmp_path):
    context = multiprocessing.get_context("fork")
    started, end = context.Event(), context.Event()
    # A daemon: where the lock fails, so does the test, and nothing waits for this process for ever.
    other = context.Process(target=hold, args=(tmp_path, started, end), daemon=True)
    other.start()
    assert started.wait(60)
    with pytest.raises(UserError, match=r"output .*: is being written"), open_output(tmp_path, "x", "{"):
        pass
    other.kill()
    other.join()
    with open_output(tmp_path, "x", "{") as output:
        assert isinstance(output, OutputFolder)


def test_a_single_result_is_ours_or_left_alone(tmp_path):
    path = tmp_path / "out.json"
    with open_result(str(path), ("methods",)) as write:
        write({"methods": {"a": float("nan")}})
    assert json.loads(path.read_text()) == {"methods": {"a": None}}
    with open_result(str(path), ("methods",)) as write:
        write({"methods": {}})
    path.write_text('{"other": 1}')
    with pytest.raises(UserError, match="no evaluation wrote it"), open_result(str(path), ("methods",)):
        pass
    assert path.read_text() == '{"other": 1}'
    assert sorted(os.listdir(tmp_path)) == ["out.json"]


def test_two_evaluations_do_not_share_a_single_result(tmp_path):
    path = str(tmp_path / "out.json")
    with (
        open_result(path, ("methods",)) as write,
        pytest.raises(UserError, match=r"^output .*out\.json: is being written by process"),
        open_result(path, ("methods",)),
    ):
        write({"methods": {}})
    assert os.listdir(tmp_path) == []
