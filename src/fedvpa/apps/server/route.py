"""A route whose body is read by pydantic itself, straight from its bytes.

FastAPI reads a body with Python's JSON (which takes NaN and fails on deep nesting), parses the content type as an
e-mail's and resolves dependencies, which here are none: for a small request that costs more than the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from fedvpa.apps.server.errors import ApiError, from_validation, nearest


class CheckedRoute(APIRoute):
    """FastAPI's route, description included, with a shorter way in where a body is all that an endpoint takes."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        d = self.dependant
        known = tuple(parameter.alias for parameter in d.query_params)
        if len(d.body_params) != 1 or d.query_params or d.path_params:
            whole = super().get_route_handler()
            bodies = [p.field_info.annotation for p in d.body_params]
            fields = tuple(n for b in bodies if isinstance(b, type) and issubclass(b, BaseModel) for n in _names(b))

            async def checked_handler(request: Request) -> Response:
                check_query(request, known)
                try:
                    return await whole(request)
                except RequestValidationError as e:
                    raise from_validation(e.errors(), fields) from None

            return checked_handler
        (parameter,), call = d.body_params, d.call
        model, name = parameter.field_info.annotation, parameter.name
        assert call is not None
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)

        async def handler(request: Request) -> Response:
            check_query(request, known)
            checked = read(model, await request.body(), request.headers.get("content-type", ""))
            response: Response = await call(**{name: checked})
            return response

        return handler


def check_query(request: Request, known: Sequence[str]) -> None:
    """Refuses parameters in the address that nobody would look at.

    Raises:
        ApiError: an unknown one, or one given twice (422).
    """
    if not request.scope["query_string"]:
        return
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            remedy = nearest(name, known) or ("remove it" if not known else f"known are {', '.join(known)}")
            raise ApiError(422, "unknown parameter", remedy, name)
        if given.count(name) > 1:
            raise ApiError(422, "is given twice", "give it once", name)


def read(model: type[BaseModel], body: bytes, content_type: str) -> BaseModel:
    """A checked body.

    Raises:
        ApiError: it is not JSON (400), or not what is wanted (422).
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        problem = f"the content type is {kind!r}" if kind else "there is no content type"
        raise ApiError(422, problem, "send a JSON object, with content-type: application/json")
    if not body:
        raise ApiError(422, "there is no body", "send a JSON object")
    try:
        return model.model_validate_json(body)
    except ValidationError as e:
        found = [{**error, "loc": ("body", *error["loc"])} for error in e.errors()[:1]]
        raise from_validation(found, _names(model)) from None


@lru_cache
def _names(model: type[BaseModel]) -> tuple[str, ...]:
    """All names of fields that a body may have, at any depth."""
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return tuple(sorted({name for part in parts for name in part.get("properties", {})}))
