"""Outputs that something else changed, and outputs that a run replaces: nothing lost, nothing doubled."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ivg.run import cli
from ivg.run.lock import hold_lock, lock_path
from ivg.run.output_files import fingerprint, join_parts, manifest_path, part_folder, part_path
from tests.run.conftest import Folders

GUIDED = (
    "--token_guidance implicit --chunk_guidance explicit --chunk_length 3 --num_beams 2 --num_successors 2"
)


@pytest.fixture
def command(folders: Folders, tmp_path: Path) -> list[str]:
    """Decode eight prompts, three of them equal, in blocks of two, with a trace."""
    prompts = tmp_path / "prompts.jsonl"
    texts = ["the movie", "a", "hello", "a", "b", "a", "film", "c"]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    models = ["--base", folders.base, "--tuned", folders.tuned, "--untuned", folders.untuned]
    sizes = "--num_successors 2 --max_new_tokens 8 --block_size 2"
    outputs = ["--output", str(tmp_path / "o.jsonl"), "--trace", str(tmp_path / "t.jsonl")]
    guided = ["--value", folders.value, *GUIDED.split(), *sizes.split()]
    return [*models, *guided, "--input", str(prompts), *outputs]


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return str(line)


def joined(*lines: bytes) -> bytes:
    return b"".join(lines)


# Name, what is done to the lines, what is found, and how many lines are kept.
DAMAGE: list[tuple[str, Callable[[list[bytes]], bytes], str, int]] = [
    ("removed", lambda o: joined(*o[:2], *o[3:]), "line 3 does not answer the record whose turn it is", 1),
    ("last removed", lambda o: joined(*o[:7]), "ends after line 7, where there were 8", 7),
    ("doubled", lambda o: joined(*o[:3], *o[2:]), "line 4 does not answer", 3),
    ("exchanged", lambda o: joined(o[0], o[2], o[1], *o[3:]), "line 2 does not answer", 1),
    ("garbage", lambda o: joined(*o[:4], b"\0\xff{]\n", *o[5:]), "line 5 is no JSON", 3),
    ("cut in the middle", lambda o: joined(*o[:4], o[4][:9] + b"\n", *o[5:]), "line 5 is no JSON", 3),
    ("another kind", lambda o: joined(*o[:4], b"[1]\n", *o[5:]), "line 5 does not answer", 3),
    ("deep", lambda o: joined(b"[" * 100_000 + b"\n", *o[1:]), "line 1 is no JSON", 0),
    ("emptied", lambda o: b"", "ends after line 0, where there were 8", 0),
    ("equal one removed", lambda o: joined(*o[:1], *o[2:]), "line 2 does not answer", 1),
]


@pytest.mark.parametrize("name", ["o.jsonl", "t.jsonl"])
@pytest.mark.parametrize(
    ("damage", "expected", "num_kept"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE]
)
def test_damaged_lines_are_found_named_and_made_again(
    command: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[list[bytes]], bytes],
    expected: str,
    num_kept: int,
    name: str,
) -> None:
    assert cli.main(command) == 0
    files = [tmp_path / "o.jsonl", tmp_path / "t.jsonl"]
    whole = [file.read_bytes() for file in files]
    file = tmp_path / name
    file.write_bytes(damage(file.read_bytes().splitlines(keepends=True)))
    with caplog.at_level(logging.WARNING):
        assert cli.main(command) == 0
    assert f"output {file}: {expected}" in caplog.text
    if name == "o.jsonl":  # a trace names its prompt, so lines of equal records differ
        assert f"everything after line {num_kept} is made again" in caplog.text
    assert [f.read_bytes() for f in files] == whole
    caplog.clear()
    assert cli.main(command) == 0
    assert caplog.text == ""


def test_equal_records_side_by_side_cannot_hide_a_missing_line(
    command: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All that follow have moved up, and each seems to answer its record."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "b"}\n' + 7 * '{"prompt": "a"}\n')
    assert cli.main(command) == 0
    output = tmp_path / "o.jsonl"
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    output.write_bytes(joined(*lines[:3], *lines[4:]))
    assert cli.main(command) == 0
    assert "ends after line 7, where there were 8; everything after line 1 is made again" in caplog.text
    assert output.read_bytes() == whole


def test_a_line_that_says_something_else_is_made_again(
    command: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It answers its record, but not as it was written."""
    assert cli.main(command) == 0
    output = tmp_path / "o.jsonl"
    whole = output.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    lines[4]["response"] = "x" + lines[4]["response"][1:]
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(command) == 0
    assert "its lines are not those that were written; everything after line 0 is made again" in caplog.text
    assert output.read_bytes() == whole


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda path: path.unlink(), "was moved or removed by something else while it was written"),
        (lambda path: os.truncate(path, 3), "was cut or written to by something else"),
        (
            lambda path: path.write_bytes(path.read_bytes() + b"x\n"),
            "was cut or written to by something else",
        ),
        (lambda path: (path.unlink(), path.write_text("")), "was moved or removed"),
    ],
    ids=["unlinked", "truncated", "appended to", "replaced"],
)
@pytest.mark.parametrize("name", ["o.jsonl", "t.jsonl"])
def test_an_output_that_is_harmed_while_it_is_written_is_an_error(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], object],
    expected: str,
    name: str,
) -> None:
    seen = []

    def see(piece: object) -> None:
        seen.append(piece)
        if len(seen) == 5:
            harm(tmp_path / name)

    monkeypatch.setattr(cli, "_print_text", see)
    assert cli.main([*command, "--stream"]) == 1
    assert f"error: {tmp_path / name}: {expected}" in capsys.readouterr().err
    assert json.loads(manifest_path(tmp_path / "o.jsonl").read_text())["status"] == "running"
    monkeypatch.undo()
    assert cli.main(command) == 0
    whole = (tmp_path / "o.jsonl").read_bytes()
    assert cli.main([*command, "--overwrite"]) == 0
    assert (tmp_path / "o.jsonl").read_bytes() == whole


def test_a_link_stays_a_link(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "real.jsonl"
    (tmp_path / "o.jsonl").symlink_to(target)
    for more in ([], ["--overwrite"]):
        assert cli.main([*command, *more]) == 0
        assert (tmp_path / "o.jsonl").is_symlink()
        assert target.read_bytes().count(b"\n") == 8


def test_a_link_stays_a_link_where_processes_share_a_run(tmp_path: Path) -> None:
    output, target = tmp_path / "o.jsonl", tmp_path / "real.jsonl"
    output.symlink_to(target.name)
    for number, lines in enumerate((b"1\n", b"2\n3\n")):
        part_path(output, number).parent.mkdir(exist_ok=True)
        part_path(output, number).write_bytes(lines)
    digest = join_parts(output, [part_path(output, number) for number in range(2)])
    assert output.is_symlink()
    assert target.read_bytes() == b"1\n2\n3\n"
    assert (digest.num_lines, digest.num_bytes) == (3, 6)
    assert not part_folder(output).exists()


def test_overwriting_keeps_the_old_result_until_the_new_run_can_decode(
    command: list[str], folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command) == 0
    files = [tmp_path / "o.jsonl", tmp_path / "t.jsonl", tmp_path / "o.jsonl.manifest.json"]
    before = [file.read_bytes() for file in files]
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(folders.base).iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"no weights")
    capsys.readouterr()
    line = refusal(
        capsys, [str(broken) if part == folders.base else part for part in command] + ["--overwrite"]
    )
    assert f"base ({broken}): " in line
    assert [file.read_bytes() for file in files] == before
    assert cli.main([*command, "--overwrite", "--seed", "3"]) == 0
    assert all(file.read_bytes() != old for file, old in zip(files, before, strict=True))


@pytest.mark.parametrize("name", ["o.jsonl", "t.jsonl"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_what_is_not_ours_is_never_written_over(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, more: list[str]
) -> None:
    (tmp_path / name).write_text("precious\n")
    line = refusal(capsys, [*command, *more])
    assert f"output {tmp_path / name}: exists without a manifest that names it" in line
    assert (tmp_path / name).read_text() == "precious\n"


def test_overwriting_leaves_other_files_among_the_parts_alone(command: list[str], tmp_path: Path) -> None:
    assert cli.main(command) == 0
    parts = tmp_path / "o.jsonl.parts"
    parts.mkdir()
    for name in ("000000.jsonl", "notes.txt", "mine.jsonl"):
        (parts / name).write_text("{}\n")
    assert cli.main([*command, "--overwrite"]) == 0
    assert sorted(file.name for file in parts.iterdir()) == ["mine.jsonl", "notes.txt"]


@pytest.mark.parametrize("name", ["o.jsonl", "t.jsonl"])
def test_two_runs_on_one_file(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Both ended with exit code 0 and 28 lines for 14 prompts."""
    with hold_lock(lock_path(tmp_path / name), "output"):
        line = refusal(capsys, command)
    assert f"output {tmp_path / name}: is being written by process {os.getpid()}" in line
    assert not (tmp_path / "o.jsonl").exists()
    assert cli.main(command) == 0
    assert not lock_path(tmp_path / name).exists()


def test_weights_that_changed_between_runs_are_noticed(
    command: list[str], folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in Path(folders.base).iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    command = [str(base) if part == folders.base else part for part in command]
    assert cli.main(command) == 0
    first = fingerprint(base)
    weights = base / "model.safetensors"
    state = weights.stat()
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))  # the same size and time
    assert fingerprint(base) != first
    capsys.readouterr()
    assert "was made with other settings (models.base" in refusal(capsys, command)
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert fingerprint(base) != first  # another time
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert fingerprint(base) == first


def test_values_from_the_environment_stay_out_of_the_manifest(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = tmp_path / "c.yaml", tmp_path / "o.jsonl"
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    config.write_text(
        "base: ${oc.env:MY_BASE}\nsampling: {max_new_tokens: 4, stop: ['${oc.env:MY_STOP}']}\n"
        f"input: {tmp_path}/prompts.txt\noutput: {output}\n"
    )
    monkeypatch.setenv("MY_BASE", folders.base)
    monkeypatch.setenv("MY_STOP", "hunter2,please")
    assert cli.main(["--config", str(config)]) == 0
    text = manifest_path(output).read_text()
    assert folders.base not in text
    assert "hunter2" not in text
    settings = json.loads(text)["settings"]
    assert settings["base"]["path"].startswith("${oc.env:MY_BASE} [")
    assert list(settings["models"]) == ["base (${oc.env:MY_BASE})"]
    assert cli.main(["--config", str(config)]) == 0  # goes on
    monkeypatch.setenv("MY_STOP", "other")
    capsys.readouterr()
    assert "sampling.stop.0: ${oc.env:MY_STOP} [" in refusal(capsys, ["--config", str(config)])


def test_a_run_that_was_moved_goes_on(command: list[str], tmp_path: Path) -> None:
    assert cli.main(command) == 0
    new = tmp_path / "new"
    new.mkdir()
    for name in ("o.jsonl", "t.jsonl", "o.jsonl.manifest.json"):
        (tmp_path / name).rename(new / name)
    whole = (new / "o.jsonl").read_bytes()
    (new / "o.jsonl").write_bytes(whole[:100])
    moved = [part.replace(str(tmp_path / "o.j"), str(new / "o.j")) for part in command]
    moved = [part.replace(str(tmp_path / "t.j"), str(new / "t.j")) for part in moved]
    assert cli.main(moved) == 0
    assert (new / "o.jsonl").read_bytes() == whole
