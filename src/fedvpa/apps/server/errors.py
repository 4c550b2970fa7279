"""Every answer that is no success: ``{"error": {"field": ..., "message": ..., "remedy": ...}}``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from fedvpa.errors import UserError

_TAG = "kind: "  # begins the tags of unions of fields; no field has such a name


class Problem(BaseModel):
    """What is wrong, where, and what to do about it."""

    field: str | None
    message: str
    remedy: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    error: Problem


class ApiError(Exception):
    """An answer that is no success.

    Args:
        status: HTTP status; message: what is wrong; remedy: what the caller can do; field: what in the request.
        headers: further headers, such as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        remedy: str | None = None,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.problem = Problem(field=field, message=message, remedy=remedy)

    @property
    def body(self) -> bytes:
        return ErrorBody(error=self.problem).model_dump_json().encode()

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.problem.model_dump()}, self.status, self.headers)


def invalid(field: str, message: str, remedy: str | None = None) -> ApiError:
    """A request that is understood, and wrong in one field (422)."""
    return ApiError(422, message, remedy, field)


def from_user_error(e: UserError, field: str | None = None) -> ApiError:
    """`UserError` as an answer; ``field`` for an error that names none."""
    return ApiError(422, e.problem, e.remedy, e.field or field)


def place(loc: Sequence[str | int]) -> str | None:
    """Pydantic's location as ``examples[0].chosen``."""
    name = ""
    for part in loc[1:]:
        if isinstance(part, int):
            name += f"[{part}]"
        elif not part.startswith(_TAG):
            name += f".{part}" if name else part
    return name or None


def nearest(name: str, known: Sequence[str]) -> str | None:
    """A question for the known name that is most like one, where there is such."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else None


def from_validation(errors: Sequence[Any], known: Sequence[str] = ()) -> ApiError:
    """The first of pydantic's errors, in our words.

    Args:
        known: names of fields, for suggestions.
    """
    first = errors[0]
    kind, message = first["type"], str(first["msg"]).removeprefix("Value error, ")
    if kind == "json_invalid":
        return ApiError(400, "the body is not valid JSON", "send one JSON object in UTF-8")
    field = place(first["loc"])
    remedy = {"extra_forbidden": "remove it", "missing": "fill it in"}.get(kind)
    if kind == "extra_forbidden":
        message, remedy = "unknown field", nearest(str(first["loc"][-1]), known) or remedy
    if kind == "missing" and first["loc"] == ("body",):
        return ApiError(422, "there is no body", "send a JSON object, with content-type: application/json")
    if kind in ("model_attributes_type", "dict_type") and field is None:
        remedy = "send a JSON object, with content-type: application/json"
    return ApiError(422, message[0].lower() + message[1:], remedy, field)


_HTTP = {
    400: ("the body cannot be read", "send one JSON object in UTF-8"),
    404: ("there is nothing at this address", "see /docs for the addresses"),
    405: ("this address does not take that method", "see /docs for the methods"),
}


def install(app: FastAPI) -> None:
    """Lets every error that the framework or an endpoint raises leave as an `ErrorBody`."""

    async def api(_: Request, e: Exception) -> JSONResponse:
        assert isinstance(e, ApiError)
        return e.response()

    async def validation(_: Request, e: Exception) -> JSONResponse:
        assert isinstance(e, RequestValidationError)
        return from_validation(e.errors()).response()

    async def http(_: Request, e: Exception) -> JSONResponse:
        assert isinstance(e, HTTPException)
        message, remedy = _HTTP.get(e.status_code, (str(e.detail), None))
        return ApiError(e.status_code, message, remedy, headers=e.headers).response()

    app.add_exception_handler(ApiError, api)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
