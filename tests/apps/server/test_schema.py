"""Schemathesis against the service's own OpenAPI description: no fault, and no answer that it does not announce."""

from __future__ import annotations

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi

from fedvpa import Selector
from fedvpa.apps.server.app import Service, create_app
from fedvpa.apps.server.settings import Settings

CHECKS = [
    checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
]
FIXED = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def examine(run: Path, examples: int, mode: schemathesis.GenerationMode) -> set[tuple[str, str, int]]:
    """Asks every operation so many times; returns which statuses came."""
    service = Service(Selector.from_pretrained(run), Settings(timeout=60, users=5))
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
    seen: set[tuple[str, str, int]] = set()
    operations = [o.ok() for o in schema.get_all_operations()]
    assert len(operations) == 10
    if mode is schemathesis.GenerationMode.NEGATIVE:  # without a body and parameters there is nothing to get wrong
        operations = [o for o in operations if o.body or o.path_parameters or o.query]
        assert len(operations) == 7
    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(**FIXED, max_examples=examples)
        def ask(case: schemathesis.Case) -> None:
            answer = case.call()
            seen.add((case.method, case.operation.path, answer.status_code))
            case.validate_response(answer, checks=CHECKS)

        ask()
    return seen


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_what_the_description_allows_and_what_it_does_not(finished: Path, mode: schemathesis.GenerationMode) -> None:
    seen = examine(finished, 8, mode)
    wanted = 200 if mode is schemathesis.GenerationMode.POSITIVE else 422
    assert {path for method, path, status in seen if status == wanted and method == "POST"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_many(finished: Path, mode: schemathesis.GenerationMode) -> None:
    examine(finished, 200, mode)
