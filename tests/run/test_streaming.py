"""Streamed pieces: never retracted, whole characters, equal to the final text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import ivg
from ivg.config import ModelConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.decoding.sequences import Hypothesis, Task
from ivg.decoding.stopping import StopChecker
from ivg.decoding.streaming import AgreedText, NewText
from ivg.models.loading import load_models
from tests import tiny

TASK = Task(index=0, prompt_id="p", prompt_ids={}, max_tokens=50)
BYTES = "aé b€."


def _decode(ids: Sequence[int]) -> str:
    """One token per byte of `BYTES`, as byte-level tokenizers have it."""
    return bytes(ids).decode("utf-8", errors="replace")


def _stream(boundaries: Sequence[Sequence[Hypothesis]], stop: tuple[str, ...] = ()) -> list[NewText]:
    pieces: list[NewText] = []
    agreed = AgreedText(StopChecker((0,), stop, _decode), stop, pieces.append)
    for i, beams in enumerate(boundaries):
        agreed(TASK, beams, i == len(boundaries) - 1)
    return pieces


def _beam(data: bytes, reason: str | None = None) -> Hypothesis:
    return Hypothesis(tuple(data), finish_reason=reason)  # type: ignore[arg-type]


def test_only_what_all_beams_agree_on_is_given() -> None:
    pieces = _stream(
        [
            [_beam(b"ab"), _beam(b"ax")],
            [_beam(b"abcd"), _beam(b"abce")],
            [_beam(b"abcef", "length"), _beam(b"abceg")],
        ]
    )
    assert [p.text for p in pieces] == ["a", "bc", "ef"]
    assert [p.is_last for p in pieces] == [False, False, True]


def test_half_a_character_waits() -> None:
    data = "aé€b".encode()
    pieces = _stream([[_beam(data[:n])] for n in range(1, len(data))] + [[_beam(data, "length")]])
    assert [p.text for p in pieces] == ["a", "é", "€", "b"]


def test_what_may_become_a_stop_string_waits() -> None:
    steps = [b"x#", b"x#y", b"x#y#", b"x#y##"]
    beams = [[_beam(step)] for step in steps[:-1]] + [[_beam(steps[-1], "stop")]]
    pieces = _stream(beams, stop=("##",))
    assert [p.text for p in pieces] == ["x", "#y", ""]
    assert pieces[-1].is_last


def test_spaces_wait_for_what_follows() -> None:
    pieces = _stream([[_beam(b"a ")], [_beam(b"a b")], [_beam(b"a b ", "length")]])
    assert [p.text for p in pieces] == ["a", " b", " "]


def test_a_decoder_that_takes_back_gets_no_further_piece() -> None:
    pieces = _stream([[_beam(b"abc")], [_beam(b"ax")], [_beam(b"abcd", "length")]])
    assert [p.text for p in pieces] == ["abc", "d"]


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("stop", [(), ("e", "ab")])
def test_streams_of_a_search_end_as_its_responses(
    tmp_path: Path, early_stopping: bool, stop: tuple[str, ...]
) -> None:
    base = tiny.save(tmp_path / "base", tiny.causal(1))
    value = tiny.save(tmp_path / "value", tiny.value(3, num_labels=1))
    models = load_models(base, values=[ValueConfig(model=ModelConfig(path=value))])
    streams: dict[str, list[NewText]] = {}
    search = SearchConfig(
        chunk_guidance="explicit",
        num_beams=2,
        num_successors=3,
        chunk_length=2,
        early_stopping=early_stopping,
    )
    responses = ivg.generate(
        [{"id": i, "prompt": "hello"[: 1 + i % 5]} for i in range(12)],
        models,
        search=search,
        sampling=SamplingConfig(max_new_tokens=15, stop=stop),
        max_batch_rows=18,
        on_text=lambda piece: streams.setdefault(piece.prompt_id, []).append(piece),
    )
    for response in responses:
        pieces = streams[response.id]
        assert "".join(piece.text for piece in pieces) == response.text
        assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert max(map(len, streams.values())) > 2  # it does stream


def test_samples_stream_apart(tmp_path: Path) -> None:
    models = load_models(tiny.save(tmp_path / "base", tiny.causal(1)))
    streams: dict[int, str] = {}

    def collect(piece: NewText) -> None:
        streams[piece.sample] = streams.get(piece.sample, "") + piece.text

    sampling = SamplingConfig(max_new_tokens=9, num_samples=3)
    responses = ivg.generate(
        ["hello"], models, search=SearchConfig(chunk_length=2), sampling=sampling, on_text=collect
    )
    assert [streams[i] for i in range(3)] == [r.text for r in responses]
