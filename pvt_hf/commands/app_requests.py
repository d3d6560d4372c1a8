"""
What the page of `pvt-hf app` lets in: its own requests, and files that visitors have uploaded to it.

Gradio serves many more addresses than a page needs, and checks the paths of files only in servers that it has launched
itself. So [`Gate`] stands before the server, and [`GuardedBlocks`] before the event handlers.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .app_addresses import is_loopback


# What a browser that shows the page asks for
OWN_PATHS = {
    "/", "/config", "/favicon.ico", "/manifest.json", "/robots.txt", "/theme.css", "/gradio_api/queue/data",
    "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/upload_progress",
}  # fmt: skip
FILE = "/gradio_api/file="
OWN_PREFIXES = ("/assets/", "/static/", "/gradio_api/heartbeat/", FILE)
REFUSED = "The page did not understand this request."

logger = logging.getLogger(__name__)


def host_of(url: str) -> str:
    """The host's name or address in a URL; "" if there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets that do not hold an IPv6 address
        return ""


def forwarded_names(request: Request) -> Iterator[str]:
    """The hosts and addresses that a proxy or tunnel says the request was for and from, whatever host it names now."""
    for header in ("x-forwarded-host", "x-forwarded-for", "x-real-ip"):
        for value in ",".join(request.headers.getlist(header)).split(","):
            name = value.strip()
            if name:
                yield name if is_loopback(name) else host_of(f"//{name}")


def is_uploaded(path: Any) -> bool:
    """
    Whether `path` is a file in Gradio's upload folder, where its answers lie too. Links count as what they lead to. A
    path that does not begin with the folder is not looked up at all, so that nobody can probe what exists.
    """
    folder = os.path.abspath(get_upload_folder())
    if not isinstance(path, str) or "\0" in path or not Path(os.path.abspath(path)).is_relative_to(folder):
        return False
    real = Path(os.path.realpath(path))
    return real.is_relative_to(os.path.realpath(folder)) and real.is_file()


def file_paths(value: Any) -> Iterator[Any]:
    """The `path` of every dict in the JSON `value`: that is how Gradio names files."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from file_paths(entry)


def log_refusal(what: str, error: Exception) -> None:
    """One line in the log; with the level DEBUG, the traceback too."""
    logger.warning("%s: %s: %s", what, type(error).__name__, " ".join(str(error).split())[:300])
    logger.debug("%s", what, exc_info=error)


def answer_failure(request: Request, error: Exception) -> Response:
    """For `exception_handlers` of the server: the answer to a request on which it fails."""
    return PlainTextResponse(REFUSED, 400)


class GuardedBlocks(gr.Blocks):
    """`gr.Blocks` whose events take uploaded files only, and answer odd requests with an error of one sentence."""

    async def process_api(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in the base class; every event of the page comes through here."""
        try:
            event_data = getattr(kwargs.get("event_data"), "_data", None)
            if not all(map(is_uploaded, file_paths([inputs, event_data]))):
                raise gr.Error("This file was not uploaded here.", print_exception=False)
            return await super().process_api(block_fn, inputs, *args, **kwargs)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            log_refusal("A request could not be answered", error)
            raise gr.Error(REFUSED, print_exception=False) from None


class Gate:
    """
    The server `app`, for requests of the page only. Others get 404, and what fails is one line in the log.

    Args:
        app: the server.
        local: serve only browsers that call this machine by a loopback name or address. Another name belongs to a proxy
            or a tunnel, which lets others in, or to a web site that has redirected its own name to this machine. The
            scripts of web sites are refused, too.
    """

    def __init__(self, app: ASGIApp, local: bool):
        self.app, self.local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.refusal(Request(scope)) if scope["type"] == "http" else None
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif answer is not None:
            await answer(scope, receive, send)
        else:
            await self.forward(scope, receive, send)

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the server answer. If that fails, Starlette has answered, or begun to: then the answer is ended here."""
        ended = True

        async def watch(message: Message) -> None:
            nonlocal ended
            ended = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            log_refusal(f"{scope.get('method')} {scope.get('path')} failed", error)
            if not ended:
                await send({"type": "http.response.body", "body": b""})

    def refusal(self, request: Request) -> Response | None:
        """The answer to a request that does not reach the server."""
        # "origin" is the web site whose script makes the request
        sites = [str(request.url), *request.headers.getlist("origin")]
        if self.local and not all(map(is_loopback, [*map(host_of, sites), *forwarded_names(request)])):
            text = "This page serves its own machine only. To let others in, start it with --host and --model."
            return PlainTextResponse(text, 403)
        path = request.scope["path"]
        if path.startswith(FILE) and not is_uploaded(path.removeprefix(FILE)):
            return PlainTextResponse("Not found", 404)
        return None if path in OWN_PATHS or path.startswith(OWN_PREFIXES) else PlainTextResponse("Not found", 404)
