"""The numbers of docs/how-guidance-works.md are what the program computes."""

from __future__ import annotations

import re

import pytest
import torch

from ivg.decoding.beam_search import Candidate, keep_best
from ivg.decoding.log_ratio import log_ratio
from ivg.decoding.sampling import next_tokens
from ivg.decoding.token_guidance import WeightedScores, guide_logits
from tests.docs.pages import DOCS, table

PAGE = DOCS / "how-guidance-works.md"
HALF_A_DIGIT = 0.0005  # the page gives three digits
ROWS = table(PAGE, "token")


def column(name: str) -> torch.Tensor:
    return torch.tensor([float(row[name]) for row in ROWS], dtype=torch.float64)


def guided(beta: float) -> torch.Tensor:
    ratio = log_ratio(column("tuned").log(), column("untuned").log())
    return guide_logits(column("base").log(), [WeightedScores(beta, ratio)])


@pytest.mark.parametrize("beta", [1, 2])
def test_guided_probabilities(beta: int) -> None:
    torch.testing.assert_close(
        guided(beta).softmax(-1), column(f"guided, β={beta}"), atol=HALF_A_DIGIT, rtol=0
    )


def test_log_ratios_and_the_implicit_value_of_two_tokens() -> None:
    ratio = log_ratio(column("tuned").log(), column("untuned").log())
    torch.testing.assert_close(ratio, column("log-ratio"), atol=HALF_A_DIGIT, rtol=0)
    names = [row["token"] for row in ROWS]
    value = ratio[names.index("great")] + ratio[names.index("dull")]
    stated = re.search(r"that is 0\.693 − 1\.386 = −(0\.\d+)", PAGE.read_text(encoding="utf-8"))
    assert stated is not None
    assert value.item() == pytest.approx(-float(stated[1]), abs=HALF_A_DIGIT)


def test_the_draw() -> None:
    assert "For the random number 0.45 the base alone takes *fine*" in PAGE.read_text(encoding="utf-8")
    uniform = torch.tensor([0.45], dtype=torch.float64)
    names = [row["token"] for row in ROWS]
    base = next_tokens(column("base").log()[None], uniform, temperature=1)
    drawn = next_tokens(guided(1)[None], uniform, temperature=1)
    assert (names[base.item()], names[drawn.item()]) == ("fine", "great")


def test_the_chunk_search() -> None:
    rows = table(PAGE, "row")
    candidates = [Candidate(int(row["row"]), float(row["value"]), is_finished=False) for row in rows]
    kept = {candidate.row: f"beam {place}" for place, candidate in enumerate(keep_best(candidates, 2))}
    assert [row["kept as"] for row in rows] == [kept.get(int(row["row"]), "") for row in rows]
    picture = (DOCS / "assets" / "chunk-search.svg").read_text(encoding="utf-8")
    assert re.findall(r"row (\d): value (-?[\d.]+)", picture.split('class="kept"')[1]) == [
        (row["row"], row["value"]) for row in rows if row["kept as"]
    ]
