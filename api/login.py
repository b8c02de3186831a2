"""How a browser shows the token once: it gets a cookie that scripts and other sites cannot use.

Keeps nothing: the cookie follows from the token.
"""

import urllib.parse

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from api.guard import COOKIE, LOGIN, cookie_of, same
from api.page.paint import filled

MAX_FORM = 4096  #: bytes of the form: whoever has no token may send it
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

    def _form(words: str = "", status: int = 200) -> Response:
        return filled("login.html", status, words=words, title="Log in — SteadyDiffusion", here="")

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
