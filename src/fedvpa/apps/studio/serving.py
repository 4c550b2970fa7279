"""Answers requests: the page under uvicorn, with nothing loaded from elsewhere and a token where others can reach it.

The token comes with a link (``/?token=...``), as Jupyter does it, and not with Gradio's own login: that one wants the
name of a user, which nobody has here, and guards its own routes only. The link sets a cookie; every request needs it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qs

# Read when Gradio is imported, and again when a page is made: nothing may be reported to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedvpa.apps.listening import check_token, is_local, tcp_socket
from fedvpa.apps.studio import page
from fedvpa.apps.studio.world import World
from fedvpa.errors import UserError

COOKIE = "fedvpa_studio"
LARGEST_BODY = 4_000_000
CONTENT = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
"""Content-Security-Policy: a browser loads nothing from another host, whatever a library's page asks for."""

_HEADERS = ((b"content-security-policy", CONTENT.encode()), (b"referrer-policy", b"no-referrer"))
_REFUSED = ("/gradio_api/upload", "/gradio_api/proxy=", "/gradio_api/stream")
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")


class Guard:
    """Lets a request through that may see the page, and adds headers to the answer.

    Without a token only requests that were addressed to this machine itself are answered, so that another site's page
    cannot reach the studio under a name of its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token
        self.badge = "" if token is None else hashlib.sha256(f"fedvpa studio {token}".encode()).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        refusal = self.refusal(scope)
        if refusal is None:
            return await self.app(scope, receive, with_headers)
        await refusal(scope, receive, with_headers)

    def refusal(self, scope: Scope) -> PlainTextResponse | None:
        """What is answered instead of the page; None lets the request through."""
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        length = headers.get("content-length", "0")
        if scope["path"].startswith(_REFUSED):
            return PlainTextResponse("not found", 404)
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            return PlainTextResponse("the request is too large", 413)
        if self.token is None:
            if not is_local(_addressed(headers.get("host", ""))):
                return PlainTextResponse("this studio answers to 127.0.0.1 and localhost only", 403)
            return None
        if hmac.compare_digest(_cookie(headers.get("cookie", "")), self.badge):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and hmac.compare_digest(given.encode(), self.token.encode()):
            answer = PlainTextResponse("", 303, {"location": "."})
            answer.set_cookie(COOKIE, self.badge, httponly=True, samesite="strict")
            return answer
        return PlainTextResponse("A token is needed. Open the link that `fedvpa studio` printed: /?token=…", 401)


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None or not found.value.isascii() else found.value


def _addressed(host: str) -> str:
    """The name in a Host header, without its port."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return name.strip("[]")


def application(world: World, run: str, token: str | None = None) -> ASGIApp:
    """The studio as an ASGI application.

    Args:
        run: the run's name, for the title.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/report", response_model=None)
    def report() -> FileResponse | PlainTextResponse:
        if world.report is None or not world.report.is_file():
            return PlainTextResponse("this run has no report", 404)
        return FileResponse(world.report, media_type="text/html")

    folder = files("fedvpa.apps.studio")
    script = (folder / "studio.js").read_text(encoding="utf-8")
    gr.mount_gradio_app(
        app,
        page.build(world, run),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=(folder / "studio.css").read_text(encoding="utf-8"),
        head=f"<script>{script}</script>",
    )
    return Guard(app, token)


def theme() -> gr.themes.Base:
    """The report's colours, the system's fonts."""
    found = gr.themes.Base(font=_FONTS, font_mono=_MONO, radius_size="sm")
    colours = {
        "body_background_fill": ("#ffffff", "#14171c"),
        "background_fill_primary": ("#ffffff", "#14171c"),
        "background_fill_secondary": ("#f4f6f9", "#1d222a"),
        "block_background_fill": ("#ffffff", "#14171c"),
        "body_text_color": ("#1d2129", "#e8eaee"),
        "body_text_color_subdued": ("#5b6270", "#a3abb8"),
        "block_label_text_color": ("#1d2129", "#e8eaee"),
        "block_title_text_color": ("#1d2129", "#e8eaee"),
        "border_color_primary": ("#d9dce2", "#343a45"),
        "block_border_color": ("#d9dce2", "#343a45"),
        "input_background_fill": ("#ffffff", "#1d222a"),
        "input_border_color": ("#8a919e", "#6b7482"),
        "input_border_color_focus": ("#0b5c92", "#7cc0ee"),
        "slider_color": ("#0b5c92", "#7cc0ee"),
        "color_accent": ("#0b5c92", None),
        "button_primary_background_fill": ("#0b5c92", "#7cc0ee"),
        "button_primary_background_fill_hover": ("#084a76", "#9bd0f3"),
        "button_primary_text_color": ("#ffffff", "#10202c"),
        "button_secondary_background_fill": ("#f4f6f9", "#1d222a"),
        "button_secondary_background_fill_hover": ("#e6eaf0", "#2a313c"),
        "button_secondary_text_color": ("#1d2129", "#e8eaee"),
    }
    chosen = {k: light for k, (light, _) in colours.items()}
    chosen |= {f"{k}_dark": dark for k, (_, dark) in colours.items() if dark is not None}
    return found.set(**chosen)


def bound(host: str, port: int) -> socket.socket:
    """A listening address.

    Raises:
        UserError: the port is taken, or the host is none of this machine's.
    """
    try:
        return tcp_socket(host, port)
    except OSError as e:
        remedy = "choose another --port (0: any free one) or --host"
        raise UserError(f"cannot be used ({e.strerror or e})", remedy, field=f"{host}:{port}") from None


def serve(
    run: Path,
    policy: Path | None,
    pairs: Path | None,
    host: str,
    port: int,
    token: str | None,
    say: Callable[[str], None],
) -> None:
    """Loads a run and answers requests until it is interrupted.

    Args:
        say: prints a line.

    Raises:
        UserError: as `World.open`, `bound` and `check_token`.
    """
    check_token(host, token)
    with bound(host, port) as listening:
        world = World.open(run, pairs, policy)
        config = uvicorn.Config(
            application(world, run.resolve().name, token),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,
        )
        name = f"[{host}]" if ":" in host else host
        say(f"Studio: http://{name}:{listening.getsockname()[1]}/{f'?token={token}' if token else ''}")
        say("Ctrl-C ends it; nobody's answers are kept.")
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            say("ended")
