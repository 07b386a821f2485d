"""How every request that fails is answered: JSON in OpenAI's shape, with one sentence.

{"error": {"message": SENTENCE, "type": KIND, "param": FIELD or null, "code": WORD}}
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from lipcast.errors import (
    BusyError,
    InputError,
    LipcastError,
    MemoryBudgetError,
    OutputError,
    QueueFullError,
    UsageError,
)

RETRY_S = 5
"""What a client is told to wait before it asks again."""
_STATUS = {QueueFullError: 429, BusyError: 503, InputError: 400, UsageError: 400,
           MemoryBudgetError: 507, OutputError: 507}  # fmt: skip
_WORDS = {
    400: "invalid_request", 401: "invalid_token", 403: "forbidden", 404: "not_found",
    405: "method_not_allowed", 409: "conflict", 413: "too_large", 415: "unsupported_media_type",
    416: "range_not_satisfiable", 422: "invalid_request", 429: "queue_full", 500: "internal_error",
    503: "busy", 507: "insufficient_storage",
}  # fmt: skip
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ProblemDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="A sentence: what is wrong, and what to do.")
    type: str
    param: str | None = Field(description="The field that is wrong.")
    code: str


class Problem(BaseModel):
    """The answer to a request that failed."""

    error: ProblemDetail


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of these statuses for a route; every route may answer with 401 and 403."""
    return {status: {"model": Problem} for status in (*statuses, 401, 403)}


def problem_document(status: int, message: str, *, param: str | None = None) -> dict[str, Any]:
    """Return the body of an answer."""
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = _WORDS.get(status, "error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def problem(status: int, message: str, *, param: str | None = None) -> JSONResponse:
    """Return an answer; one that may succeed later says when to ask again."""
    headers = {"Retry-After": str(RETRY_S)} if status in {429, 503} else None
    return JSONResponse(problem_document(status, message, param=param), status, headers)


def add_problems(app: FastAPI) -> None:
    """Answer every error of an application in this shape."""

    @app.exception_handler(LipcastError)
    async def explain(_request: Request, error: LipcastError) -> JSONResponse:
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        named = re.match(r"(\w+): ", str(error)) if isinstance(error, UsageError) else None
        return problem(status, str(error), param=None if named is None else named[1])

    @app.exception_handler(HTTPException)
    async def explain_http(_request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def explain_body(_request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()[0]
        where = ".".join(str(part) for part in found["loc"])
        return problem(422, f"{where}: {found['msg']}", param=str(found["loc"][-1]))

    @app.exception_handler(Exception)
    async def explain_bug(_request: Request, _error: Exception) -> JSONResponse:
        return problem(500, "the server has failed at this request; its log says why")
