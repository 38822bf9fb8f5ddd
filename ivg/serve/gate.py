"""What every request passes before it is read: the key, and the size of its body."""

from __future__ import annotations

import hmac

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ivg.serve.protocol import ApiError

_GUARDED = "/v1"


class Gate:
    """Turns away requests to `/v1` without the key, and bodies that are too large.

    Args:
        app: what lies behind.
        api_key: None lets everybody in.
        max_body_bytes: the largest body.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, max_body_bytes: int) -> None:
        self._app = app
        self._key = None if api_key is None else api_key.encode()
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["path"].startswith(_GUARDED) and not self._has_key(headers.get(b"authorization", b"")):
            error = ApiError(401, "the API key is wrong or missing; send it as Authorization: Bearer KEY")
            await _answer(error, scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._max_body_bytes:
            await _answer(self._too_large(), scope, receive, send)
            return
        num_bytes = 0

        async def count() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise HTTPException(413, self._too_large().message)
            return message

        await self._app(scope, count, send)

    def _has_key(self, given: bytes) -> bool:
        if self._key is None:
            return True
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self._max_body_bytes} bytes; send less")


async def _answer(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(error.body(), error.status)(scope, receive, send)
