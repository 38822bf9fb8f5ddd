"""The made-up reviews: enough distinct prompts, splits that share none, and a task that cannot saturate."""

import random
import re

import corpus
import prepare
import pytest

from ivg.errors import UserError
from ivg.rewards import sentiment

CONFIG = "recipes/quickstart/prepare.yaml"


def test_the_grammar_has_more_than_five_thousand_distinct_prompts():
    prompts = corpus.all_prompts()
    # 20 adjectives x 20 nouns x 6 openings x 7 days
    assert len(prompts) == 20 * 20 * 6 * 7
    assert len(set(prompts)) == len(prompts) >= 5000


def test_splits_as_configured_share_no_prompt():
    config = prepare.read_config(CONFIG)
    splits = corpus.split_prompts(
        config.seed,
        num_train=config.num_train,
        num_validation=config.num_validation,
        num_test=config.num_test,
    )
    assert [len(split) for split in splits] == [config.num_train, config.num_validation, config.num_test]
    assert config.num_test >= 200
    assert config.num_train >= 5000
    together = [prompt for split in splits for prompt in split]
    assert len(set(together)) == len(together)


def test_splits_follow_the_seed():
    sizes = {"num_train": 50, "num_validation": 20, "num_test": 20}
    assert corpus.split_prompts(3, **sizes) == corpus.split_prompts(3, **sizes)
    assert corpus.split_prompts(3, **sizes) != corpus.split_prompts(4, **sizes)


def test_prompts_scenes_and_fillers_carry_no_sentiment():
    scenes = [scene.format(hero=hero) for scene in corpus.SCENES for hero in corpus.HEROES]
    neutral = [*corpus.all_prompts()[:: len(corpus.DAYS)], *scenes]
    neutral += [
        filler.format(minutes=minutes, season=season)
        for filler in corpus.FILLERS
        for minutes in corpus.MINUTES
        for season in corpus.SEASONS
    ]
    assert {sentiment(text) for text in neutral} == {0.0}


def test_a_review_is_a_scene_three_opinions_a_verdict_and_at_most_one_filler():
    rng = random.Random(0)
    lengths = [len(re.findall(r"[.!]", corpus.write_review(rng))) for _ in range(400)]
    assert set(lengths) == {5, 6}
    assert 150 < lengths.count(6) < 250  # half of 400, within five standard deviations


def test_the_attainable_range_adds_up_the_extreme_sentences():
    # A score that knows one opinion and one verdict of each kind: (0 + 3 x 1 + 0.5) / 5, and its opposite.
    scores = {
        "The plot was superb!": 1.0,
        "I loved it.": 0.5,
        "The plot was awful.": -1.0,
        "I hated it!": -0.5,
    }
    found = corpus.attainable_range(lambda sentence: scores.get(sentence, 0.0))
    assert found == pytest.approx((-0.7, 0.7))


def test_the_attainable_range_does_not_depend_on_names():
    # Words that a slot takes at will say nothing: else a review could beat the range by its names.
    names = [*corpus.RELATIVES, *corpus.ASPECTS, *corpus.HEROES, *corpus.DAYS]
    assert {sentiment(f"Here is the {name}.") for name in names} == {0.0}


def test_no_sampled_review_leaves_the_attainable_range():
    rng = random.Random(0)
    found = [sentiment(corpus.write_review(rng)) for _ in range(2000)]
    lowest, highest = corpus.attainable_range(sentiment)
    assert -0.8 < lowest < min(found) < max(found) < highest < 0.8


def test_prepare_writes_disjoint_files_and_a_tokenizer_that_spells_every_review(tmp_path):
    config = tmp_path / "prepare.yaml"
    config.write_text(
        f"{{output_dir: {tmp_path}/data, seed: 1, num_train: 60, num_validation: 20, num_test: 20, "
        "vocab_size: 300}",
        encoding="utf-8",
    )
    prepare.main(["--config", str(config)])
    data = tmp_path / "data"
    from ivg.training.data import read_jsonl

    reviews = read_jsonl(data / "reviews.train.jsonl")
    assert [row["prompt"] for row in reviews] == [
        r["prompt"] for r in read_jsonl(data / "prompts.train.jsonl")
    ]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    assert len(tokenizer) == 300
    assert tokenizer.bos_token is None
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)
    for row in reviews:
        whole = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        # The border between prompt and review is a border between tokens.
        parts = [tokenizer(row[name])["input_ids"] for name in ("prompt", "completion")]
        assert whole == parts[0] + parts[1]
        assert tokenizer.decode(whole) == row["prompt"] + row["completion"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{num_trian: 3}", "unknown key 'num_trian'; did you mean 'num_train'"),
        ("{output_dir: x, seed: zero}", "seed is 'zero'; give an integer"),
    ],
)
def test_prepare_refuses_a_wrong_configuration(tmp_path, content, message):
    path = tmp_path / "prepare.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        prepare.read_config(str(path))
