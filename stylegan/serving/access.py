"""Who may ask, and how much: the token, foreign web pages, the size and time of a request, and headers for browsers."""

from __future__ import annotations

import asyncio
import hmac
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from fastapi import HTTPException
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "stylegan_token"
OPEN_PATHS = ("/health", "/ready")  # probes have no token
MOST_BODY = 8 * 2**20  # bytes of a request
BODY_SECONDS = 30.0  # in which it must arrive
LOOPBACK = ("localhost", "127.0.0.1", "::1")

# Nothing comes from elsewhere, and nothing is inside the page itself.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# A page that a mail or another site has opened does not send the new cookie after a redirect; it does after this.
ENTERED = '<!doctype html><meta http-equiv="refresh" content="0; url=./"><title>StyleGAN</title>'


class Guard:
    """The outermost layer of the app."""

    def __init__(self, app: ASGIApp, *, token: str | None) -> None:
        """Put a guard before an app.

        Args:
            app: what it guards.
            token: what whoever asks must know. None lets everybody ask who is on this machine, but no web page of another
                place, which could reach this machine through the browser of somebody on it.
        """
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = self._answer(scope)
        await (answer or self.app)(scope, _limited(receive), _with_headers(send))

    def _answer(self, scope: Scope) -> Response | None:
        """Return the answer to a request that is not passed on."""
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BODY:
            return _refusal(413, f"a body of {length[:20]} bytes: must be at most {MOST_BODY:,} bytes")
        if self.token is None:
            return _foreign(scope, headers)
        if scope["path"] in OPEN_PATHS or self._knows(_given(headers)):
            return None
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0] if scope["path"] == "/" else ""
        if scope["method"] == "GET" and self._knows(asked):
            return self._enter(scope)
        said = "give the server's token: `Authorization: Bearer TOKEN`, or open /?token=TOKEN in a browser"
        return _refusal(401, said, {"WWW-Authenticate": "Bearer"})

    def _knows(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self.token or "").encode())

    def _enter(self, scope: Scope) -> Response:
        """Give a browser the token as a cookie, and a page without the token in its address."""
        page = HTMLResponse(ENTERED, headers={"Cache-Control": "no-store"})
        page.set_cookie(COOKIE, self.token or "", httponly=True, samesite="strict", secure=scope["scheme"] == "https")
        return page


def _given(headers: Headers) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return cookie.value if cookie else ""


def _foreign(scope: Scope, headers: Headers) -> Response | None:
    """Refuse what a web page of another place has sent: by another name of this machine, or from another origin."""
    host = headers.get("host", "")
    if urlsplit(f"//{host}").hostname not in LOOPBACK:
        return _refusal(
            403, f"Host {host[:100]}: without a token this server answers on localhost alone; start it with one"
        )
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return _refusal(403, f"Origin {origin[:100]}: pages of other places may not use this server")
    return None


def _refusal(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": detail}, status, headers)


def _limited(receive: Receive) -> Receive:
    """Return a `receive` that ends a body that is too long or too slow."""
    size, deadline, complete = 0, time.monotonic() + BODY_SECONDS, False

    async def limited() -> Message:
        nonlocal size, complete
        if complete:  # from here on it waits for the end of the connection
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), deadline - time.monotonic())
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None
        size += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if size > MOST_BODY:
            raise HTTPException(413, f"the body: must be at most {MOST_BODY:,} bytes")
        return message

    return limited


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
