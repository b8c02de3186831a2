"""How a browser shows the token once: it gets a cookie that scripts and other sites cannot use."""

import html
import urllib.parse

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from api.guard import COOKIE, LOGIN, cookie_of, same

_DAYS = 30


def routes(token: str | None, *, secure: bool) -> APIRouter:
    """``/login``: an address with ``?token=`` (as the service prints it), or a form."""
    router = APIRouter(include_in_schema=False)

    @router.get(LOGIN)
    def login(token: str = "") -> Response:
        return _enter(token) if token else _form()

    @router.post(LOGIN)
    async def log_in(request: Request) -> Response:
        given = urllib.parse.parse_qs((await request.body()).decode("utf-8", "replace"))
        return _enter(given.get("token", [""])[0])

    def _enter(given: str) -> Response:
        if token is not None and not same(given.strip().encode("utf-8", "replace"), token):
            return _form("That is not the token.", 401)
        answer = RedirectResponse("/", status_code=303)
        if token is not None:
            answer.set_cookie(
                COOKIE,
                cookie_of(token),
                max_age=_DAYS * 86400,
                httponly=True,
                samesite="strict",
                secure=secure,
                path="/",
            )
        return answer

    return router


def _form(words: str = "", status: int = 200) -> Response:
    said = f'<p role="alert">{html.escape(words)}</p>' if words else ""
    page = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Log in: SteadyDiffusion</title>
<link rel="stylesheet" href="/static/docs.css">
<main>
<h1>SteadyDiffusion</h1>
{said}
<form method="post" action="{LOGIN}">
<label>Token <input name="token" type="password" autocomplete="current-password" required></label>
<button>Log in</button>
</form>
<p>The service printed the token when it started; it is also in <code>.steady/token</code>.</p>
</main>
</html>
"""
    return HTMLResponse(page, status)
