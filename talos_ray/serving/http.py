"""The same over HTTP: a FastAPI application, which needs no Ray."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from talos_ray.errors import TalosError
from talos_ray.serving.record import Refused
from talos_ray.serving.server import MERGED, SINGLE, Server

FAILED = 500  # what is wrong is here, not in the request


class Question(BaseModel):
    """What a request's body holds."""

    model_config = ConfigDict(extra="forbid")
    inputs: list[Any] = Field(
        description="texts; image files in base64; or mappings, where a task's inputs are made of several columns"
    )
    top_k: int = Field(default=1, description="how many classes of each input, the likeliest first")


class Label(BaseModel):
    """A class and its probability."""

    label: str
    score: float


class Answer(Label):
    """Of one input."""

    number: int
    input: str
    top: list[Label] | None = Field(default=None, description="where more than one class was asked for")


class Answers(BaseModel):
    """Of all inputs, in their order."""

    task: str
    version: int
    edit: Literal["merged", "single"]
    classes: list[str]
    notes: list[str]
    predictions: list[Answer]


class Problem(BaseModel):
    """Why a request is not answered."""

    error: str


Version = Annotated[
    int | None, Header(alias="X-Talos-Version", description="a version; the one in force, if not given")
]
Edit = Annotated[Literal["merged", "single"], Header(alias="X-Talos-Edit", description="single: the task's edit alone")]
RequestId = Annotated[
    str | None, Header(alias="X-Request-Id", description="by which the canary chooses: the same id, the same version")
]
REFUSALS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "no such task, version or edit"},
    409: {"model": Problem, "description": "a version that its gate keeps aside"},
    422: {"model": Problem, "description": "an input or a setting, named by its place"},
    500: {"model": Problem, "description": "the version cannot be composed, or answers with no numbers"},
}


def api(server: Server) -> FastAPI:
    """The application; `/openapi.json` and `/docs` describe it. Its functions are no coroutines, so that requests wait
    for the model in threads of their own."""
    app = FastAPI(title="talos_ray", version=version("talos-ray"), summary="Many versions and edits of one model.")

    def answer(
        question: Question, response: Response, task: str, version: int | None, edit: str, request: str | None
    ) -> dict[str, Any]:
        # Whoever gives no id is still sent to a version by one, and can ask for that version again.
        name = request or uuid4().hex
        predictions = server.predict(
            question.inputs, task, version=version, edit=edit, top_k=question.top_k, request=name
        )
        response.headers["X-Talos-Version"] = str(predictions.version)
        if not request:  # Ray Serve draws one itself, and tells it
            response.headers["X-Request-Id"] = name
        return {**predictions.as_dict(), "edit": edit}

    # FastAPI makes an `Answers` of what these give, and leaves out what they do not say.
    @app.post("/v1/tasks/{task}:predict", response_model=Answers, responses=REFUSALS, response_model_exclude_unset=True)
    def predict(
        question: Question,
        response: Response,
        task: str,
        version: Version = None,
        edit: Edit = MERGED,
        request: RequestId = None,
    ) -> dict[str, Any]:
        """Answer inputs of a task, by a version or by the task's edit alone."""
        return answer(question, response, task, version, edit, request)

    @app.post("/v1/edits/{task}:predict", response_model=Answers, responses=REFUSALS, response_model_exclude_unset=True)
    def predict_single(
        question: Question, response: Response, task: str, version: Version = None, request: RequestId = None
    ) -> dict[str, Any]:
        """Answer inputs of a task by its edit alone."""
        return answer(question, response, task, version, SINGLE, request)

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        """Which version is in force and what the model holds now."""
        return server.health()

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Requests, inputs and switches of this replica, for Prometheus."""
        return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(TalosError)
    def refused(request: Request, error: TalosError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status if isinstance(error, Refused) else FAILED)

    @app.exception_handler(HTTPException)
    def unknown(request: Request, error: HTTPException) -> JSONResponse:
        # The framework's own: no such path, another method, a body that cannot be parsed at all.
        server.metrics.count(error.status_code)
        asked = f"{request.method} {request.url.path}"
        told = f"{asked[:200]!r}: {error.detail}; wanted POST /v1/tasks/TASK:predict or another that /docs describes"
        return JSONResponse({"error": told}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> JSONResponse:
        # Raised again after the answer, so that the server's log has all of it.
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return JSONResponse({"error": f"the server failed ({told}); its log has more"}, FAILED)

    @app.exception_handler(RequestValidationError)
    def unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
        places = []
        for fault in error.errors():
            place = ".".join(map(str, fault["loc"]))
            places.append(f"{place}: {fault['msg']}")
        # Refused before any function of this file is called, so nobody else counts it.
        server.metrics.count(422)
        return JSONResponse({"error": "; ".join(places)}, 422)

    return app
