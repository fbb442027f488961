"""What is refused before the page sees it: too large requests, and those that make the server fetch things."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LARGEST_MESSAGE = 1 << 20  # bytes of anything but an upload
FETCHES = ("file=http", "file/http", "proxy=")  # gradio hands on what it finds at an address behind these


class Guard:
    """ASGI middleware.

    Args:
        app: what it stands before.
        largest_upload: bytes of a request to `/upload`, all its files together.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], largest_upload: int) -> None:
        self.app = app
        self.largest_upload = largest_upload

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        most = self.largest_upload if path.endswith("/upload") else LARGEST_MESSAGE
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(word in path for word in FETCHES):
            await _refuse(send, 403)
        elif any(not value.isdigit() or int(value) > most for value in lengths):
            await _refuse(send, 413)
        else:
            await self.app(scope, _counted(receive, most), send)


def _counted(receive: Receive, most: int) -> Receive:
    """`receive`, which ends like a broken connection when more comes than was announced or is allowed."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= most else {"type": "http.disconnect"}

    return counted


async def _refuse(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
