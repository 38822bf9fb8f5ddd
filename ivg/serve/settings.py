"""What a server is started with: models, presets and limits, from one YAML file; no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ivg.config import DecodeConfig, SamplingConfig, SearchConfig, check_guidance, check_rows
from ivg.config.checks import require, require_integer, require_not_negative
from ivg.config.yaml_file import build, config_from_dict, nearest
from ivg.errors import UserError

# Settings of a run over files, which a server has no use for.
_OF_FILES = (
    *("input", "output", "dataset", "trace", "limit", "block_size", "skip_bad_rows", "on_overflow"),
    *("return_beams", "return_token_ids"),
)
GUIDED, UNGUIDED = "ivg", "base"  # names of the presets where the file gives no list


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One way of decoding, which clients choose as a model by its name.

    Attributes:
        name: what clients give as `model`.
        search: guidance and beam search.
        beta: weight in token guidance of every guide that takes part in it; None: each guide's own.
    """

    name: str
    search: SearchConfig
    beta: float | None = None

    def __post_init__(self) -> None:
        is_name = isinstance(self.name, str) and bool(self.name.strip())
        require(is_name, f"guidance: name is {self.name!r}; give a text that clients use as model")
        if self.beta is not None:
            require_not_negative(f"guidance {self.name}: beta", self.beta)
            guides = self.search.token_guidance != "none"
            require(guides, f"guidance {self.name}: beta weighs token guidance, which is none; leave it out")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Where the server listens, whom it answers, and how much one client may ask for.

    Attributes:
        host: address to listen on; `0.0.0.0` is every one of this machine.
        port: 0 takes any free one.
        api_key: what clients must send as bearer token; None: everybody is answered.
        max_rows: num_beams x num_successors that a request may ask for; None: no more than the preset's own.
        max_tokens: length limit in tokens that a request may ask for.
        max_beta: weight of token guidance that a request may ask for.
        max_responses: prompts x n of one request.
        max_requests: requests that are answered or wait at the same time; more are turned away (503).
        max_body_bytes: size of a request's body.
        stop_timeout: seconds that running requests get to finish once the server is asked to stop.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_rows: int | None = None
    max_tokens: int = 4096
    max_beta: float = 10.0
    max_responses: int = 128
    max_requests: int = 1024
    max_body_bytes: int = 4 * 2**20
    stop_timeout: float = 30.0

    def __post_init__(self) -> None:
        require(isinstance(self.host, str) and bool(self.host), f"serve: host is {self.host!r}; give text")
        require_integer("serve: port", self.port, at_least=0)
        require(self.port <= 65535, f"serve: port is {self.port}; give 0 to 65535")
        is_key = self.api_key is None or (
            isinstance(self.api_key, str) and self.api_key.strip() == self.api_key != ""
        )
        require(is_key, "serve: api_key is empty or has spaces around it; give text, or leave it out")
        for name in ("max_tokens", "max_responses", "max_requests", "max_body_bytes"):
            require_integer(f"serve: {name}", getattr(self, name), at_least=1)
        if self.max_rows is not None:
            require_integer("serve: max_rows", self.max_rows, at_least=1)
        for name in ("max_beta", "stop_timeout"):
            require_not_negative(f"serve: {name}", getattr(self, name))


@dataclasses.dataclass(frozen=True, slots=True)
class ServerSettings:
    """A whole server.

    Attributes:
        run: models, engine, and the sampling that holds where a request says nothing else.
        presets: by name, in the file's order.
        serve: address and limits.
    """

    run: DecodeConfig
    presets: Mapping[str, Preset]
    serve: ServeConfig

    @property
    def max_rows(self) -> int:
        """num_beams x num_successors that a request may ask for."""
        if self.serve.max_rows is not None:
            return self.serve.max_rows
        return max(preset.search.rows_per_prompt for preset in self.presets.values())


def settings_from_dict(data: Mapping[str, Any]) -> ServerSettings:
    """Build checked settings from a YAML file's keys.

    Raises:
        UserError: an unknown key, a wrong type, a value out of range, a preset without the models it needs.
    """
    valid = {field.name for field in dataclasses.fields(DecodeConfig)} | {"guidance", "serve"}
    for key in data:
        if key not in valid:
            raise UserError(f"config: unknown key {key!r}; {nearest(key, valid - {*_OF_FILES})}")
        if key in _OF_FILES:
            raise UserError(f"config: {key} belongs to ivg decode, a server has none; leave it out")
    if "base" not in data:
        raise UserError("no base model: give base in --config")
    run = config_from_dict({key: value for key, value in data.items() if key not in ("guidance", "serve")})
    for name in ("seed", "num_samples"):
        default = getattr(SamplingConfig(), name)
        instead = "seed" if name == "seed" else "n"
        require(
            getattr(run.sampling, name) == default,
            f"sampling.{name} belongs to ivg decode: clients give {instead} with each request; leave it out",
        )
    for name in ("value_engine", "speculative_config"):
        require(
            name not in run.vllm,
            f"vllm.{name} belongs to ivg decode: a server has one vLLM for every preset; leave it out",
        )
    serve = build(ServeConfig, _mapping(data.get("serve", {}), "serve"), "serve")
    require(
        serve.max_rows is None or run.engine != "lockstep" or serve.max_rows <= run.max_batch_rows,
        f"serve.max_rows {serve.max_rows} is above max_batch_rows {run.max_batch_rows}; lower it",
    )
    presets = _read_presets(data, run)
    for preset in presets:
        _check_preset(preset, run, serve)
    return ServerSettings(run, {preset.name: preset for preset in presets}, serve)


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"config: {where} is {value!r:.60}; give keys with their values")
    return value


def _read_presets(data: Mapping[str, Any], run: DecodeConfig) -> list[Preset]:
    if "guidance" not in data:
        plain = Preset(name=UNGUIDED, search=SearchConfig())
        guides = run.search.token_guidance != "none" or run.search.chunk_guidance != "none"
        return [Preset(name=GUIDED, search=run.search), plain] if guides else [plain]
    if "search" in data:
        raise UserError("config: guidance lists all presets, so search would not be read; give one of them")
    entries = data["guidance"]
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise UserError(f"config: guidance is {entries!r:.60}; give a list of presets, each with a name")
    presets: list[Preset] = []
    for entry in entries:
        keys = dict(_mapping(entry, "an entry of guidance"))
        own = {key: keys.pop(key) for key in ("name", "beta") if key in keys}
        if "name" not in own:
            raise UserError(f"config: guidance {keys!r:.60} has no name; clients choose it by that")
        presets.append(Preset(search=build(SearchConfig, keys, f"guidance {own['name']}"), **own))
    names = [preset.name for preset in presets]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"config: guidance has {twice!r} twice; give each preset its own name")
    return presets


def _check_preset(preset: Preset, run: DecodeConfig, serve: ServeConfig) -> None:
    try:
        check_guidance(preset.search, run.sampling, run.pairs, run.values)
        if run.engine == "lockstep":
            check_rows(preset.search, run.max_batch_rows)
    except UserError as error:
        raise UserError(f"guidance {preset.name}: {error}") from error
    rows = preset.search.rows_per_prompt
    require(
        serve.max_rows is None or rows <= serve.max_rows,
        f"guidance {preset.name}: num_beams x num_successors {rows} is above serve.max_rows {serve.max_rows}",
    )
    require(
        preset.beta is None or preset.beta <= serve.max_beta,
        f"guidance {preset.name}: beta {preset.beta} is above serve.max_beta {serve.max_beta}",
    )
    require(
        run.sampling.max_new_tokens <= serve.max_tokens,
        f"sampling.max_new_tokens {run.sampling.max_new_tokens} is above serve.max_tokens {serve.max_tokens}",
    )
