"""The guard before the page: sizes, and addresses that nobody is to have fetched."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from glus.app.guard import LARGEST_MESSAGE, Guard


def ask(path: str, parts: list[bytes], **headers: str) -> tuple[list[int], int | None]:
    """Status codes sent, and how many bytes the page has read; None if the connection broke on it."""
    read: list[int | None] = [0]
    sent: list[int] = []
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]

    async def page(scope: Any, receive: Any, send: Any) -> None:
        for _ in parts:
            message = await receive()
            if message["type"] == "http.disconnect":
                read[0] = None
                return
            read[0] = (read[0] or 0) + len(message["body"])
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.extend([message["status"]] if "status" in message else [])

    known = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "headers": known}
    asyncio.run(Guard(page, largest_upload=4 * LARGEST_MESSAGE)(scope, receive, send))
    return sent, read[0]


MEGABYTE = bytes(LARGEST_MESSAGE)


def test_what_fits_goes_through() -> None:
    assert ask("/gradio_api/queue/join", [b"abc", b"d"], content_length="4") == ([200], 4)
    assert ask("/gradio_api/upload", [MEGABYTE] * 4) == ([200], 4 * LARGEST_MESSAGE)


@pytest.mark.parametrize("length", [str(LARGEST_MESSAGE + 1), "-1", "many"])
def test_what_is_too_large_by_its_head(length: str) -> None:
    assert ask("/gradio_api/queue/join", [], content_length=length) == ([413], 0)


def test_what_is_larger_than_its_head_says() -> None:
    assert ask("/gradio_api/queue/join", [MEGABYTE, b"x"], content_length="5") == ([], None)
    assert ask("/gradio_api/upload/", [MEGABYTE] * 5) == ([], None)


@pytest.mark.parametrize("path", ["file=http://a.b/c", "file/https://a.b", "proxy=http://a.b/c"])
def test_nothing_is_fetched_for_others(path: str) -> None:
    assert ask(f"/gradio_api/{path}", []) == ([403], 0)
