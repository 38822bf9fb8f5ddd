"""`ivg-decode` on generated configurations and records: it works, or says in one line what is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import event, given
from hypothesis import strategies as st

from ivg.run import cli
from tests import tiny
from tests.fuzz.profile import fuzz


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    root = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # names that are no folders
        yield {
            "base": tiny.save(root / "base", tiny.causal(0)),
            "tuned": tiny.save(root / "tuned", tiny.causal(1)),
            "untuned": tiny.save(root / "untuned", tiny.causal(2)),
            "scalar": tiny.save(root / "scalar", tiny.value(3, num_labels=1)),
            "vocabulary": tiny.save(root / "vocabulary", tiny.value(4, num_labels=len(tiny.LETTERS) + 2)),
            "other": tiny.save(root / "other", tiny.causal(5), tiny.tokenizer(tiny.LETTERS[::-1])),
            "empty": str(root),
            "none": str(root / "none"),
            "hub": "no/such",
        }


# Anything that YAML or JSON can hold.
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 6),
    st.sampled_from([10**13, 2**63, -(2**70), 10**40]),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["", "\0", "\ud800", "{prompt}", "chat", "cpu", "auto", "0", "nan", "${oc.env:HOME}"]),
    st.sampled_from(["${x}", "${oc.env:IVG_NOT_SET}", "${", "0x1f", "1e400", "../x", "/"]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
sizes = st.integers(1, 3)
guidance = st.sampled_from(["none", "none", "implicit", "explicit"])
guides = st.sampled_from(["scalar", "vocabulary"] * 5 + ["tuned", "other", "empty", "none", "hub"])


def or_anything(strategy: st.SearchStrategy[Any], chance: int = 30) -> st.SearchStrategy[Any]:
    """Mostly what belongs there. (Not at 0, which hypothesis draws most often.)"""
    return st.integers(0, chance).flatmap(lambda n: anything if n == 7 else strategy)


def keys(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the keys, and now and then one that is none."""
    known = st.fixed_dictionaries({}, optional={name: or_anything(value) for name, value in fields.items()})
    return st.integers(0, 40).flatmap(
        lambda n: (
            st.tuples(known, st.dictionaries(st.text(max_size=8), anything, max_size=1)).map(
                lambda both: both[0] | both[1]
            )
            if n == 7
            else known
        )
    )


def model(name: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    options = keys(
        dtype=st.sampled_from(["auto", "float32", "float64", "bfloat16"]),
        device=st.sampled_from(["cpu"] * 9 + ["meta", "cuda:9", "gpu"]),
        template=st.sampled_from(["{prompt}"] * 9 + ["q {prompt} a", "chat", "{"]),
        attn_implementation=st.sampled_from(["eager", "sdpa"] * 5 + ["none"]),
        revision=st.sampled_from(["main"]),
        trust_remote_code=st.booleans(),
    )
    path = name.map(lambda name: f"@{name}")
    return path | st.tuples(path, options).map(lambda both: {"path": both[0], **both[1]})


search = keys(
    token_guidance=guidance,
    chunk_guidance=guidance,
    num_beams=st.integers(1, 2),
    num_successors=st.integers(1, 2),
    chunk_length=sizes,
    early_stopping=st.sampled_from([None, True, False]),
)
sampling = keys(
    max_new_tokens=st.integers(1, 5),
    temperature=st.floats(0, 2),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.05, 1),
    stop=st.lists(st.text(tiny.LETTERS, min_size=1, max_size=2), max_size=2),
    seed=st.integers(-5, 5),
    num_samples=st.sampled_from([1, 1, 1, 2]),
)
pair = st.fixed_dictionaries(
    {
        "tuned": model(st.sampled_from(["tuned"] * 9 + ["other"])),
        "untuned": model(st.sampled_from(["untuned"] * 9 + ["other"])),
    },
    optional={"beta": or_anything(st.floats(0, 3)), "chunk_weight": or_anything(st.floats(-1, 1))},
)
value = model(st.sampled_from(["scalar", "vocabulary"])) | st.fixed_dictionaries(
    {"model": model(guides)}, optional={"weight": or_anything(st.floats(-1, 1))}
)
config = st.tuples(
    keys(
        pairs=st.lists(pair, max_size=2),
        values=st.lists(value, max_size=2),
        search=search,
        max_batch_rows=st.integers(4, 12),
        max_batch_tokens=st.integers(1, 200),
        block_size=sizes,
        on_overflow=st.sampled_from(["error", "stop"]),
        skip_bad_rows=st.booleans(),
        return_beams=st.booleans(),
        return_token_ids=st.booleans(),
        static_steps=st.booleans(),
        engine=st.sampled_from(["lockstep"] * 8 + ["vllm"]),
        vllm=keys(tensor_parallel_size=sizes, max_model_len=sizes, block_size=sizes, dtype=st.just("auto")),
        limit=sizes,
    ),
    or_anything(model(st.sampled_from(["base"] * 5 + ["other"])), 20),
    or_anything(sampling, 20),
).map(lambda parts: {**parts[0], "base": parts[1], "sampling": parts[2]})

words = st.text(tiny.LETTERS, min_size=1, max_size=9)
turn = st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": or_anything(words)})
record = st.one_of(
    st.fixed_dictionaries({"prompt": or_anything(words)}, optional={"id": or_anything(words), "n": anything}),
    st.fixed_dictionaries({"instruction": or_anything(words)}, optional={"input": or_anything(words)}),
    st.fixed_dictionaries({"messages": or_anything(st.lists(turn, max_size=2))}),
)
lines = st.lists(
    st.integers(0, 40).flatmap(
        lambda n: st.binary(max_size=12) if n == 7 else or_anything(record, 30).map(_as_json)
    ),
    min_size=1,
    max_size=5,
)


def _as_json(data: object) -> bytes:
    return json.dumps(data).encode()


def _fill_in(data: Any, models: dict[str, str]) -> Any:
    """Put real folders in the place of models' names."""
    if isinstance(data, dict):
        return {key: _fill_in(part, models) for key, part in data.items()}
    if isinstance(data, list):
        return [_fill_in(part, models) for part in data]
    return models.get(data[1:], data) if isinstance(data, str) and data[:1] == "@" else data


@fuzz
@given(config=config, lines=lines, flags=st.sets(st.sampled_from(["--trace", "--stream", "--dry_run"])))
def test_decode_ends_as_promised(
    models: dict[str, str], config: dict[str, Any], lines: list[bytes], flags: set[str]
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        text = yaml.dump(_fill_in(config, models))
        (folder / "c.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        (folder / "p.jsonl").write_bytes(b"\n".join(lines))
        output = folder / "o.jsonl"
        argv = ["--config", folder / "c.yaml", "--input", folder / "p.jsonl", "--output", output]
        for flag in sorted(flags):
            argv += [flag, folder / "t.jsonl"] if flag == "--trace" else [flag]
        code, said = _run([str(argument) for argument in argv])
        event(f"exit code {code}{' (dry run)' if '--dry_run' in flags else ''}")
        assert code in (0, 1, 2), said
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == (0 if code == 0 or ("--dry_run" in flags and not errors) else 1), said
        assert code != 1 or "returned NaN or infinite numbers" in said, said
        if code == 0 and "--dry_run" not in flags:
            assert all(isinstance(json.loads(line), dict) for line in output.read_text().splitlines())
            before = output.read_bytes()
            assert _run([str(argument) for argument in argv])[0] == 0
            assert output.read_bytes() == before
    finally:
        shutil.rmtree(folder)


def _run(argv: list[str]) -> tuple[object, str]:
    """Run the command; return its exit code and what it printed on stderr. What it raises is the test's."""
    said = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        warnings.simplefilter("ignore")  # foreign code may warn of strange settings
        try:
            return cli.main(argv), said.getvalue()
        except SystemExit as left:
            return left.code, said.getvalue()
