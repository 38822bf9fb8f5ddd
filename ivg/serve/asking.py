"""From a request's body to what is decoded: the preset with the request's own settings, within the limits."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence

from ivg.config import SamplingConfig, SearchConfig, check_guidance
from ivg.config.checks import require_finite
from ivg.errors import UserError
from ivg.models.prompts import Record
from ivg.serve.engines import RequestSettings
from ivg.serve.protocol import ApiError, Body, ChatBody, CompletionBody, read_prompts, refuse_unserved
from ivg.serve.settings import Preset, ServerSettings

# Without chunk guidance a chunk decides nothing; this is how often streamed text is sent, in tokens. vLLM
# gets a request for each, which finds what stands before in the prefix cache, by blocks of 16 or 32.
STREAMED_TOKENS = {"lockstep": 10, "vllm": 32}
_SEED_BITS = 62

Prompt = str | list[int] | Record  # text, token ids, or a conversation


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, checked.

    Attributes:
        settings: what it has in common with others that are decoded beside it.
        prompts: each gets `n` responses.
        n: independent responses to each prompt.
        seed: of the draws.
        max_tokens: length limit, or None: the server's, or less where a context ends before.
        default_max_tokens: the server's.
        stream: send text as it becomes certain.
        include_usage: end the stream with the number of tokens.
        echo: let the prompt stand before its responses.
        num_top: how many of the most probable tokens to tell at each place; None: no log-probs.
    """

    settings: RequestSettings
    prompts: Sequence[Prompt]
    n: int
    seed: int
    max_tokens: int | None
    default_max_tokens: int
    stream: bool = False
    include_usage: bool = False
    echo: bool = False
    num_top: int | None = None


def read_completion(body: CompletionBody, server: ServerSettings) -> Ask:
    """Check a request to `/v1/completions`.

    Raises:
        ApiError: 400 or 404.
    """
    refuse_unserved(body)
    n = body.n or 1
    if body.best_of not in (None, n):
        raise ApiError(400, f"best_of {body.best_of} is not served; leave it out (chunk guidance searches)")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens 0 without echo asks for nothing; give at least 1")
    ask = _read(body, server, read_prompts(body.prompt), body.max_tokens, body.logprobs, least_tokens=0)
    return dataclasses.replace(ask, echo=bool(body.echo))


def read_chat(body: ChatBody, server: ServerSettings) -> Ask:
    """Check a request to `/v1/chat/completions`.

    Raises:
        ApiError: 400 or 404.
    """
    refuse_unserved(body)
    given = (body.max_completion_tokens, body.max_tokens)
    if None not in given and given[0] != given[1]:
        raise ApiError(400, "max_tokens and max_completion_tokens are two names of one thing; give one")
    max_tokens = given[1] if given[0] is None else given[0]
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs goes with logprobs: true; give that too")
    num_top = (body.top_logprobs or 0) if body.logprobs else None
    return _read(body, server, [{"messages": body.messages}], max_tokens, num_top)


def _read(
    body: Body,
    server: ServerSettings,
    prompts: Sequence[Prompt],
    max_tokens: int | None,
    num_top: int | None,
    *,
    least_tokens: int = 1,
) -> Ask:
    preset = server.presets.get(body.model)
    if preset is None:
        names = ", ".join(server.presets)
        raise ApiError(404, f"no model {body.model[:60]!r} here; give one of {names}", "model_not_found")
    try:
        settings = _settings(body, preset, server)
    except UserError as error:
        raise ApiError(400, str(error)) from error
    n, limits = body.n or 1, server.serve
    if len(prompts) * n > limits.max_responses:
        raise ApiError(
            400,
            f"{len(prompts)} prompts x n {n} are more than {limits.max_responses} responses; ask for less",
        )
    if max_tokens is not None and not least_tokens <= max_tokens <= limits.max_tokens:
        raise ApiError(400, f"max_tokens is {max_tokens}; give {least_tokens} to {limits.max_tokens}")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options goes with stream: true; give that too, or leave it out")
    if body.stream and num_top is not None:
        raise ApiError(400, "log-probs are not streamed; leave out stream or logprobs")
    return Ask(
        settings=settings,
        prompts=prompts,
        n=n,
        seed=secrets.randbits(_SEED_BITS) if body.seed is None else body.seed,
        max_tokens=max_tokens,
        default_max_tokens=server.run.sampling.max_new_tokens,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        num_top=num_top,
    )


def _settings(body: Body, preset: Preset, server: ServerSettings) -> RequestSettings:
    """Return the preset's settings with the request's in their place.

    Raises:
        UserError: out of range, beyond the limits, or without meaning for the preset.
    """
    search, beta = _guided(body, preset, server)
    logprobs = getattr(body, "logprobs", None)
    if search.chunk_guidance != "none" and logprobs is not None and logprobs is not False:
        raise UserError(
            f"logprobs: model {preset.name!r} searches over chunks, so its responses are not drawn from a "
            "distribution over tokens; ask a model without chunk guidance"
        )
    own = server.run.sampling
    stop = (body.stop,) if isinstance(body.stop, str) else body.stop
    sampling = SamplingConfig(
        max_new_tokens=server.serve.max_tokens,
        temperature=own.temperature if body.temperature is None else body.temperature,
        top_k=own.top_k if body.top_k is None else max(0, body.top_k),  # -1 keeps all tokens too
        top_p=own.top_p if body.top_p is None else body.top_p,
        stop=own.stop if stop is None else tuple(stop),
    )
    if body.seed is not None:
        SamplingConfig(seed=body.seed)  # checks its range
    n = body.n or 1
    if n > 1 and search.chunk_guidance != "none":
        raise UserError(
            f"n {n}: model {preset.name!r} searches for one response to a prompt; ask once for each"
        )
    numbered = dataclasses.replace(sampling, num_samples=n)
    check_guidance(search, numbered, server.run.pairs, server.run.values)
    return RequestSettings(preset.name, search, sampling, beta)


def _guided(body: Body, preset: Preset, server: ServerSettings) -> tuple[SearchConfig, float | None]:
    given = {} if body.guidance is None else body.guidance.model_dump(exclude_none=True)
    beta, limits = given.pop("beta", None), server.serve
    if beta is not None:
        require_finite("guidance.beta", beta)
        if preset.search.token_guidance == "none":
            raise UserError(f"guidance.beta: model {preset.name!r} has no token guidance; leave it out")
        if not 0 <= beta <= limits.max_beta:
            raise UserError(f"guidance.beta is {beta}; give 0 to {limits.max_beta:g}")
    beta = preset.beta if beta is None else beta
    if preset.search.chunk_guidance == "none":
        if given:
            raise UserError(
                f"guidance.{next(iter(given))}: model {preset.name!r} has no chunk guidance; leave it out"
            )
        return dataclasses.replace(preset.search, chunk_length=STREAMED_TOKENS[server.run.engine]), beta
    search = dataclasses.replace(preset.search, **given)
    if search.rows_per_prompt > server.max_rows:
        raise UserError(
            f"guidance: num_beams x num_successors is {search.rows_per_prompt}; "
            f"give at most {server.max_rows}"
        )
    return search, beta
