"""The HTTP interface: OpenAI's routes, health and metrics over one engine, whichever it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from transformers import PreTrainedTokenizerBase

from ivg.decoding.engine import EngineError, NumericalError
from ivg.errors import UserError, first_line
from ivg.serve.answers import Answer, Answers, Prepared
from ivg.serve.asking import Ask, read_chat, read_completion
from ivg.serve.engines import ServedModels
from ivg.serve.gate import Gate
from ivg.serve.metrics import Metrics
from ivg.serve.protocol import ApiError, ChatBody, CompletionBody, validation_message
from ivg.serve.responses import ChatFormat, CompletionFormat, Format
from ivg.serve.settings import ServerSettings

T = TypeVar("T")
logger = logging.getLogger(__name__)
# What can go wrong while decoding, and is not the client's mistake: value functions raise UserError.
_FAULTS = (NumericalError, EngineError, UserError, RuntimeError, ValueError)


class EventStream(StreamingResponse):
    """Server-sent events; the work behind them ends with the connection.

    Args:
        events: what is sent.
        on_end: called in the end, even where the client went before anything was sent.
    """

    def __init__(self, events: AsyncGenerator[str], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._events = events
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything (ASGI)."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()

    async def stream_response(self, send: Send) -> None:
        """Send everything, and close the iterator whatever happens."""
        async with contextlib.aclosing(self._events):
            await super().stream_response(send)


class Service:
    """What the routes share.

    Args:
        settings: presets and limits.
        answers: answers requests.
        models: in memory.
        tokenizer: the base's.
        metrics: counts.
    """

    def __init__(
        self,
        settings: ServerSettings,
        answers: Answers,
        models: ServedModels,
        tokenizer: PreTrainedTokenizerBase,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.models = models
        self.tokenizer = tokenizer
        self.started = int(time.time())
        self._answers = answers
        self._metrics = metrics
        self.num_requests = 0

    async def serve(self, request: Request, ask: Ask, form: Format) -> Response:
        """Answer one request.

        Raises:
            ApiError: in place of an answer.
        """
        if self.num_requests >= self.settings.serve.max_requests:
            raise ApiError(503, f"{self.num_requests} requests are running or wait already; try again later")
        if not self.models.is_alive:
            raise ApiError(503, "the engine has ended; start the server again")
        self.num_requests += 1
        is_streaming = False
        try:
            prepared = await until_hang_up(request, self._answers.prepare(ask))
            if prepared is not None and ask.stream and prepared.tasks:
                is_streaming = True
                return EventStream(self._events(prepared, form), self._leave)
            with self._metrics.request(ask.settings.preset) as counted:
                answers = None
                if prepared is not None:
                    answers = await until_hang_up(request, self._answer(prepared))
                if answers is None:
                    self._metrics.cancelled.labels(ask.settings.preset).inc()
                    return Response(status_code=499)  # nobody listens
                counted.answered(answers, ask.n)
            return JSONResponse(form.whole(answers, ask.n))
        finally:
            if not is_streaming:
                self._leave()

    def refused(self, status: int) -> None:
        """Count a request that was not served."""
        self._metrics.refused.labels(str(status)).inc()

    async def _answer(self, prepared: Prepared) -> list[Answer]:
        with _as_api_errors():
            return await self._answers.answer(prepared)

    async def _events(self, prepared: Prepared, form: Format) -> AsyncGenerator[str]:
        """Yield a request's answers as server-sent events."""
        ask = prepared.ask
        preset = ask.settings.preset
        answers: dict[int, Answer] = {}
        try:
            with self._metrics.request(preset) as counted:
                try:
                    for chunk in form.opening(len(prepared.tasks)):
                        yield _event(chunk)
                    async with contextlib.aclosing(self._answers.stream(prepared)) as pieces:  # type: ignore[type-var]
                        with _as_api_errors():
                            async for number, piece in pieces:
                                if isinstance(piece, Answer):
                                    answers[number] = piece
                                    yield _event(form.end(number, piece))
                                else:
                                    counted.text_came()
                                    yield _event(form.piece(number, piece))
                except ApiError as error:
                    self.refused(error.status)
                    yield _event(error.body())
                else:
                    ordered = [answers[number] for number in sorted(answers)]
                    counted.answered(ordered, ask.n)
                    if ask.include_usage:
                        yield _event(form.usage_chunk(ordered, ask.n))
                yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self._metrics.cancelled.labels(preset).inc()
            raise

    def _leave(self) -> None:
        self.num_requests -= 1


def build_app(service: Service, registry: CollectorRegistry) -> FastAPI:
    """Return the application.

    Args:
        service: answers.
        registry: of all metrics.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.models.close()

    app = FastAPI(title="ivg", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    limits = service.settings.serve
    app.add_middleware(Gate, api_key=limits.api_key, max_body_bytes=limits.max_body_bytes)

    def refuse(error: ApiError) -> JSONResponse:
        service.refused(error.status)
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(ApiError)
    async def tell(_: Request, error: ApiError) -> JSONResponse:
        return refuse(error)

    @app.exception_handler(RequestValidationError)
    async def tell_what_is_wrong(_: Request, error: RequestValidationError) -> JSONResponse:
        return refuse(ApiError(400, validation_message(error.errors())))

    @app.exception_handler(HTTPException)
    async def tell_in_their_form(request: Request, error: HTTPException) -> JSONResponse:
        messages = {
            404: f"there is no {request.url.path[:80]!r} here",
            405: f"{request.method} is not for this path",
        }
        return refuse(ApiError(error.status_code, messages.get(error.status_code, str(error.detail))))

    @app.exception_handler(Exception)
    async def tell_no_more_than_this(_: Request, error: Exception) -> JSONResponse:
        return refuse(ApiError(500, f"the server failed on this request: {type(error).__name__}"))

    @app.post("/v1/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        ask = read_completion(body, service.settings)
        return await service.serve(request, ask, CompletionFormat(body.model, service.tokenizer))

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        ask = read_chat(body, service.settings)
        return await service.serve(request, ask, ChatFormat(body.model, service.tokenizer))

    @app.get("/v1/models")
    async def list_models() -> JSONResponse:
        models = [_describe(name, service.started) for name in service.settings.presets]
        return JSONResponse({"object": "list", "data": models})

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> JSONResponse:
        if name not in service.settings.presets:
            raise ApiError(404, f"no model {name[:60]!r} here", "model_not_found")
        return JSONResponse(_describe(name, service.started))

    @app.get("/health")
    async def health() -> Response:
        if not service.models.is_alive:
            raise ApiError(503, "the engine has ended; start the server again")
        return Response()

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _describe(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "ivg"}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


@contextlib.contextmanager
def _as_api_errors() -> Iterator[None]:
    """Turn what goes wrong while decoding into one sentence for the client, and a line in the log."""
    try:
        yield
    except _FAULTS as error:
        logger.error("a request failed: %s", first_line(error))
        raise ApiError(500, f"decoding failed: {first_line(error)}") from error


async def until_hang_up(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Wait for work, or cancel it and return None as soon as the client has gone."""
    working = asyncio.create_task(work)
    listening = asyncio.create_task(_wait_for_hang_up(request))
    try:
        await asyncio.wait([working, listening], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        listening.cancel()


async def _wait_for_hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
