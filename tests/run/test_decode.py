"""ivg-decode end to end on tiny models: rows, manifest, resume, samples, beams, trace."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from ivg.run import cli
from ivg.run.runner import BlockDecoder
from tests.run.conftest import Folders

GUIDED = ["--token_guidance", "implicit", "--chunk_guidance", "explicit", "--chunk_length", "3"]
SEARCH = ["--num_beams", "2", "--num_successors", "2"]


def decode(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def models(folders: Folders) -> list[str]:
    return [
        *("--base", folders.base, "--tuned", folders.tuned, "--untuned", folders.untuned),
        *("--value", folders.value, "--max_new_tokens", "8"),
    ]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": text, "topic": i} for i, text in enumerate(["the movie", "a", "hello there", "a", "b"])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_keep_the_inputs_fields(models: list[str], prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    assert (
        decode(*models, *GUIDED, *SEARCH, "--input", prompts, "--output", output, "--return_token_ids") == 0
    )
    rows = read(output)
    assert [(row["prompt"], row["topic"]) for row in rows] == [
        (row["prompt"], row["topic"]) for row in read(prompts)
    ]
    for row in rows:
        assert row["num_tokens"] == len(row["token_ids"]) <= 8
        assert row["finish_reason"] in ("eos", "length")
        assert isinstance(row["value"], float)
    # The same prompt twice is two prompts, with draws of their own.
    assert rows[1]["token_ids"] != rows[3]["token_ids"]


def test_manifest_names_what_decided_the_output(models: list[str], prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    decode(*models, *GUIDED, *SEARCH, "--input", prompts, "--output", output, "--seed", 7)
    manifest = json.loads((tmp_path / "o.jsonl.manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["settings"]["sampling"]["seed"] == 7
    assert len(manifest["settings"]["models"]) == 4
    assert manifest["environment"]["packages"]["torch"].startswith("2.")
    assert manifest["summary"]["num_tokens"] == sum(row["num_tokens"] for row in read(output))


def test_the_summary_counts_tokens_fed_to_each_model(
    models: list[str], prompts: Path, tmp_path: Path
) -> None:
    """By hand: one character is one token; a row is fed its prompt and all that it samples but the last."""
    output = tmp_path / "o.jsonl"
    command = [*models, "--token_guidance", "implicit", "--input", prompts, "--output", output]
    # One row at a time, so that no row is fed along after its end.
    decode(*command, "--chunk_length", 1, "--max_batch_rows", 1)
    summary = json.loads((tmp_path / "o.jsonl.manifest.json").read_text())["summary"]
    num_fed = sum(len(row["prompt"]) + row["num_tokens"] - 1 for row in read(output))
    assert list(summary["tokens_fed"].values()) == [num_fed] * 3  # base, tuned, untuned


def test_an_interrupted_run_and_its_second_half_count_as_one(
    models: list[str], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summaries = []
    for name in ("whole", "interrupted"):
        command = [*models, *GUIDED, *SEARCH, "--input", prompts, "--output", tmp_path / name]
        command += ["--block_size", 2, "--max_batch_rows", 4]
        if name == "interrupted":
            lines = BlockDecoder.lines

            def interrupt(decoder: BlockDecoder, block: int, lines: Any = lines) -> Any:
                if block == 2:
                    raise KeyboardInterrupt
                return lines(decoder, block)

            with monkeypatch.context() as patch:
                patch.setattr(BlockDecoder, "lines", interrupt)
                assert decode(*command) == 130
        assert decode(*command) == 0
        summary = json.loads((tmp_path / f"{name}.manifest.json").read_text())["summary"]
        assert summary.pop("seconds") > 0
        summaries.append(summary)
    assert summaries[0] == summaries[1]


@pytest.mark.parametrize("kept_bytes", [0, 40, 300, 10_000])
def test_an_interrupted_output_goes_on_to_the_same_bytes(
    models: list[str], prompts: Path, tmp_path: Path, kept_bytes: int
) -> None:
    output, trace = tmp_path / "o.jsonl", tmp_path / "t.jsonl"
    command = [*models, *GUIDED, *SEARCH, "--input", prompts, "--output", output, "--trace", trace]
    command += ["--block_size", 2, "--max_batch_rows", 4]
    decode(*command)
    whole, whole_trace = output.read_bytes(), trace.read_bytes()
    output.write_bytes(whole[:kept_bytes])
    trace.write_bytes(whole_trace[: 3 * kept_bytes])
    assert decode(*command) == 0
    assert output.read_bytes() == whole
    assert trace.read_bytes() == whole_trace


def test_a_complete_output_is_left_alone(
    models: list[str], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "o.jsonl"
    command = [*models, "--input", prompts, "--output", output]
    decode(*command)
    before = output.read_bytes()
    monkeypatch.setattr("ivg.run.engines.load_inspected", lambda infos: pytest.fail("loaded again"))
    assert decode(*command) == 0
    assert output.read_bytes() == before


def test_changed_settings_are_refused_unless_overwritten(
    models: list[str], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.jsonl"
    command = [*models, "--input", prompts, "--output", output]
    decode(*command)
    before = output.read_bytes()
    with pytest.raises(SystemExit) as left:
        decode(*command, "--seed", 1)
    assert left.value.code == 2
    assert "sampling.seed: 0 there, 1 now" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert decode(*command, "--seed", 1, "--overwrite") == 0
    assert output.read_bytes() != before


def test_changed_weights_are_refused(
    models: list[str], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], folders: Folders
) -> None:
    output, base = tmp_path / "o.jsonl", tmp_path / "base"
    for folder in (folders.base, folders.tuned):
        base.mkdir(exist_ok=True)
        for file in Path(folder).iterdir():
            (base / file.name).write_bytes(file.read_bytes())
        command = ["--base", base, "--input", prompts, "--output", output, "--max_new_tokens", 3]
        if folder == folders.base:
            assert decode(*command) == 0
    with pytest.raises(SystemExit):
        decode(*command)
    assert "fingerprint" in capsys.readouterr().err


def test_several_samples(models: list[str], prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    decode(*models, "--input", prompts, "--output", output, "--num_samples", 3)
    rows = read(output)
    assert [row["sample"] for row in rows] == [0, 1, 2] * 5
    assert len({row["response"] for row in rows[:3]}) == 3
    assert all(row["value"] is None for row in rows)


def test_beams_are_ordered_by_value(models: list[str], prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    decode(*models, *GUIDED, *SEARCH, "--input", prompts, "--output", output, "--return_beams")
    for row in read(output):
        values = [beam["value"] for beam in row["beams"]]
        assert len(values) == 2
        assert values == sorted(values, reverse=True)
        assert row["beams"][0]["text"] == row["response"]


def test_trace_shows_every_boundary(models: list[str], prompts: Path, tmp_path: Path) -> None:
    output, trace = tmp_path / "o.jsonl", tmp_path / "t.jsonl"
    decode(*models, *GUIDED, *SEARCH, "--input", prompts, "--output", output, "--trace", trace)
    for row, traced in zip(read(output), read(trace), strict=True):
        assert len(traced["token_logratios"]) == row["num_tokens"]
        assert len(traced["chunks"][0]["candidates"]) == 4  # W x K rows at the first boundary
        text, place = "", 0  # follow the best beam back to the start
        for chunk in reversed(traced["chunks"]):
            (chosen,) = [c for c in chunk["candidates"] if c["kept"] == place]
            text, place = chosen["text"] + text, chosen["parent"]
        assert text == row["response"]
        assert place is None


def test_bad_rows_can_be_recorded_and_passed_over(models: list[str], tmp_path: Path) -> None:
    prompts, output = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"text": "b"}\n{"prompt": "' + "c" * 70 + '"}\n{"prompt": "d"}\n')
    decode(*models, "--input", prompts, "--output", output, "--skip_bad_rows")
    rows = read(output)
    assert [row["response"] is None for row in rows] == [False, True, True, False]
    assert "line 2: expected one of prompt" in rows[1]["error"]
    assert "exceeds its context of 64" in rows[2]["error"]


def test_overflow_can_stop_the_row(models: list[str], tmp_path: Path) -> None:
    prompts, output = tmp_path / "p.txt", tmp_path / "o.jsonl"
    prompts.write_text("a\n" + "c" * 60 + "\n")
    decode(*models, "--input", prompts, "--output", output, "--on_overflow", "stop")
    rows = read(output)
    assert rows[0]["finish_reason"] in ("length", "eos")
    assert (rows[1]["finish_reason"], rows[1]["num_tokens"]) in (
        ("context", 4),
        ("eos", rows[1]["num_tokens"]),
    )


def test_standard_input_to_standard_output(
    models: list[str], prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(prompts.read_bytes())))
    assert decode(*models, "--input", "-", "--output", "-") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["topic"] for row in rows] == [0, 1, 2, 3, 4]


def test_yaml_with_overrides_equals_flags(
    models: list[str], folders: Folders, prompts: Path, tmp_path: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"base: {folders.base}\n"
        f"pairs: [{{tuned: {folders.tuned}, untuned: {folders.untuned}, beta: 2}}]\n"
        f"values: [{{path: {folders.value}}}]\n"
        "search: {token_guidance: implicit, chunk_guidance: explicit, num_beams: 2, num_successors: 3}\n"
        "sampling: {max_new_tokens: 8}\n"
    )
    by_file, by_flags = tmp_path / "file.jsonl", tmp_path / "flags.jsonl"
    overrides = ["search.chunk_length=3", "search.num_successors=2", "pairs.0.beta=1"]
    decode("--config", config, "--input", prompts, "--output", by_file, *overrides)
    decode(*models, *GUIDED, *SEARCH, "--input", prompts, "--output", by_flags)
    assert by_file.read_bytes() == by_flags.read_bytes()


def test_streamed_text_adds_up_to_the_response(
    models: list[str], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.jsonl"
    decode(*models, *GUIDED, *SEARCH, "--input", prompts, "--output", output, "--stream")
    pieces = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    streamed: dict[str, str] = {}
    for piece in pieces:
        streamed[piece["prompt_id"]] = streamed.get(piece["prompt_id"], "") + piece["text"]
    assert sorted(streamed.values()) == sorted(row["response"] for row in read(output))
    assert sum(piece["is_last"] for piece in pieces) == 5


def test_dry_run_loads_and_writes_nothing(
    models: list[str],
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    folders: Folders,
) -> None:
    monkeypatch.setattr("ivg.models.loading._load_module", lambda info: pytest.fail("weights were loaded"))
    output = tmp_path / "o.jsonl"
    command = [*models, *GUIDED, *SEARCH, "--input", prompts, "--output", output, "--dry_run"]
    assert decode(*command) == 0
    assert "base" in capsys.readouterr().out
    assert not output.exists()
    other = [folders.other_vocabulary if part == folders.tuned else part for part in command]
    assert decode(*other) == 2
    assert "33 of the base's 33 token strings are shared" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("is_dry", [False, True])
@pytest.mark.parametrize(
    ("prompt", "flags", "code"),
    [
        ("a" * 70, [], 2),
        ("a" * 70, ["--skip_bad_rows"], 0),
        ("a" * 70, ["--on_overflow", "stop"], 2),  # no room for a single token
        ("a" * 60, ["--on_overflow", "stop"], 0),
        ("a" * 60, [], 2),
        ("", [], 2),
    ],
)
def test_a_dry_run_ends_as_the_run_does(
    prompt: str,
    flags: list[str],
    code: int,
    is_dry: bool,
    models: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("ab", prompt)))
    command = [*models, "--input", path, "--max_new_tokens", "8", "--output", tmp_path / "o.jsonl", *flags]
    try:
        found = decode(*command, *(["--dry_run"] if is_dry else []))
    except SystemExit as left:
        found = left.code
    assert found == code
    assert (tmp_path / "o.jsonl").exists() == (code == 0 and not is_dry)


def test_a_dry_run_needs_no_output(models: list[str], prompts: Path) -> None:
    assert decode(*models, "--input", prompts, "--dry_run") == 0
    assert decode(*models, "--input", prompts, "--output", prompts, "--dry_run") == 2
