"""The web app on a model: pictures by URL, many at once as JSON, what the model is, and a page to play with it."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any, NoReturn

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

import stylegan
from stylegan.drawing.directions import MAX_STRENGTH
from stylegan.drawing.latents import MAX_SEED
from stylegan.drawing.project import Space
from stylegan.errors import shown
from stylegan.images import picture, picture_bytes
from stylegan.networks.generator import MAX_PSI, layer_resolution
from stylegan.serving.access import MOST_BODY, Guard
from stylegan.serving.arguments import (
    DEFAULT_STEPS,
    MOST_EDITS,
    MOST_SIDE,
    MOST_STEPS,
    PictureQuery,
    PicturesBody,
    Refused,
    check_total,
    most_images,
    sentence,
    understand,
)
from stylegan.serving.models import Models
from stylegan.serving.painting import BusyError, GoneError, Painter, etag
from stylegan.serving.projections import (
    RETRY_AFTER,
    FullError,
    Projections,
    UploadedProjection,
)

KINDS = {".png": "image/png", ".webp": "image/webp"}
PAGE_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}
PAGE_FILES, PAGE = files("stylegan.serving") / "page", "index.html"
REVALIDATE = {"Cache-Control": "no-cache"}  # caches ask again, which the tag answers


def make_app(models: Models, *, token: str | None) -> ASGIApp:
    """Make the web app.

    Args:
        models: what it draws with; it is followed while the app runs.
        token: what whoever asks must know; see `Guard`.
    """
    projections = Projections(models.device)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.painter = Painter(models.device)
        models.start()
        yield
        models.close()
        projections.close()
        app.state.painter.close()

    app = FastAPI(title="StyleGAN", version=stylegan.__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.models = models
    _explain_errors(app)
    _add_pictures(app, models, projections)
    _add_projections(app, models, projections)
    _add_facts(app, models)
    _add_page(app)
    return Guard(app, token=token)


def _explain_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": sentence(error.errors())}, 422)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> JSONResponse:
        said = f"there is too much to draw; ask again in {error.retry_after} s"
        return JSONResponse({"detail": said}, 503, {"Retry-After": str(error.retry_after)})

    @app.exception_handler(GoneError)
    async def gone(request: Request, error: GoneError) -> Response:
        return Response(status_code=499)  # nobody reads it


def _add_pictures(app: FastAPI, models: Models, projections: Projections) -> None:
    def picture_of(ending: str) -> Callable[..., Awaitable[Response]]:
        async def draw_picture(request: Request, asked: Annotated[PictureQuery, Query()]) -> Response:
            """Draw an image. Its bytes depend on the model's version and the arguments alone."""
            model = models.current
            wanted = understand(asked, model, projections.latents)
            check_total([wanted])
            headers = {**REVALIDATE, "ETag": f'"{etag(model, wanted, ending)}"', "X-Model-Version": model.version}
            if headers["ETag"] in _known(request):
                return Response(status_code=304, headers=headers)
            (data,) = await app.state.painter.pictures(model, [wanted], ending, request.is_disconnected)
            return Response(data, media_type=KINDS[ending], headers=headers)

        return draw_picture

    for ending, kind in KINDS.items():
        app.get(
            f"/image{ending}",
            name=f"image{ending.replace('.', '_')}",
            response_class=Response,
            responses={200: {"content": {kind: {}}}, 304: {"description": "The picture of If-None-Match."}},
        )(picture_of(ending))

    @app.post("/images")
    async def draw_pictures(request: Request, asked: PicturesBody) -> Response:
        """Draw many images: base64 in JSON, or a zip file if the request accepts `application/zip`."""
        model, ending = models.current, f".{asked.format}"
        wanted = [understand(one, model, projections.latents) for one in asked.images]
        check_total(wanted)
        drawn = await app.state.painter.pictures(model, wanted, ending, request.is_disconnected)
        headers = {"X-Model-Version": model.version, "Cache-Control": "no-store"}
        if "application/zip" in request.headers.get("accept", ""):
            return Response(_zip(drawn, ending), media_type="application/zip", headers=headers)
        images = [base64.b64encode(data).decode() for data in drawn]
        return JSONResponse({"version": model.version, "images": images}, headers=headers)


def _add_projections(app: FastAPI, models: Models, projections: Projections) -> None:
    @app.exception_handler(FullError)
    async def full(request: Request, error: FullError) -> JSONResponse:
        said = f"other pictures wait already; ask again in {RETRY_AFTER} s"
        return JSONResponse({"detail": said}, 429, {"Retry-After": str(RETRY_AFTER)})

    def find(name: str) -> UploadedProjection:
        found = projections.get(name)
        if found is None:
            raise HTTPException(404, f"{shown(name, 40)}: there is no such projection; upload the picture again")
        return found

    body = {
        "requestBody": {"required": True, "content": {kind: {} for kind in ("image/png", "image/jpeg", "image/webp")}}
    }

    @app.post("/projections", status_code=202, openapi_extra=body)
    async def project_picture(
        request: Request, space: Space = "w+", steps: Annotated[int, Query(ge=1, le=MOST_STEPS)] = DEFAULT_STEPS
    ) -> dict[str, str]:
        """Find the latents with which the model makes a picture, an image file in the body. It takes a while."""
        data = await request.body()
        if not data:
            raise Refused("the body is empty: it must be a PNG, JPEG or WebP file")
        new = await run_in_threadpool(projections.add, models.current, data, space=space, steps=steps)
        return {"id": new.id, "url": f"/projections/{new.id}"}

    @app.get("/projections/{name}")
    async def projection(name: str) -> dict[str, Any]:
        """Say how far a projection is, and how well it fits."""
        return find(name).describe()

    @app.delete("/projections/{name}", status_code=204)
    async def drop_projection(name: str) -> None:
        """End a projection, and forget it."""
        if not projections.drop(name):
            find(name)

    @app.get("/projections/{name}/w.npz", response_class=Response)
    async def latents_file(name: str) -> Response:
        """Return the latents of a finished projection, for `stylegan sample --w` and other programs."""
        found = find(name)
        if not found.w_file:
            raise HTTPException(409, f"this projection is {found.state}; wait until it is done")
        headers = {"Content-Disposition": 'attachment; filename="w.npz"'}
        return Response(found.w_file, media_type="application/octet-stream", headers=headers)

    @app.get("/projections/{name}/target.png", response_class=Response)
    async def target(name: str) -> Response:
        """Return the picture as it is projected: in the form of the model's images."""
        data = picture_bytes(picture(find(name).pixels, cell=1), ".png")
        return Response(data, media_type="image/png", headers={"Cache-Control": "no-store"})


def _known(request: Request) -> list[str]:
    """Return the tags that the client has; `*` and weak tags are not used here."""
    return [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]


def _zip(pictures: list[bytes], ending: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored: pictures are compressed already
        for number, data in enumerate(pictures):
            archive.writestr(zipfile.ZipInfo(f"{number:04}{ending}"), data)
    return buffer.getvalue()


def _add_facts(app: FastAPI, models: Models) -> None:
    @app.get("/model")
    async def describe_model() -> dict[str, Any]:
        """Say what the model can draw, and the limits of what may be asked."""
        model = models.current
        generator, found = model.generator, model.found
        return {
            "name": found.name,
            "version": model.version,
            "alias": found.alias,
            "resolution": generator.resolution,
            "channels": generator.channels,
            "num_layers": generator.num_layers,
            "layer_resolutions": [
                layer_resolution(index) for index in range(generator.num_layers if generator.model.has_w else 0)
            ],
            "latent_size": generator.model.latent_size,
            "w_size": generator.w_avg.shape[0],
            "classes": list(model.classes),
            "has_styles": generator.model.has_styles,
            "has_noise": generator.model.has_noise,
            "attributes": [{"name": one.name, "scale": one.scale} for one in model.directions.values()],
            "psi": {"min": -MAX_PSI, "max": MAX_PSI, "default": 1.0} if generator.model.has_w else None,
            "projection": model.means is not None,
            "no_projection": model.no_means or None,
            "limits": {
                "seed": MAX_SEED,
                "images": most_images(generator.resolution),
                "size": MOST_SIDE,
                "body_bytes": MOST_BODY,
                "edits": MOST_EDITS,
                "strength": MAX_STRENGTH,
                "steps": MOST_STEPS,
            },
        }

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, Any]:
        """Say that a model is loaded, and whether the registry answers."""
        return {"status": "ready", "version": models.current.version, "trouble": models.trouble}

    @app.get("/version")
    async def version() -> dict[str, Any]:
        """Say which program and which model answer."""
        model = models.current
        found = model.found
        return {
            "product": "stylegan-pipeline",
            "product_version": stylegan.__version__,
            "name": found.name,
            "version": model.version,
            "alias": found.alias,
            "run_id": found.run_id,
            "checkpoint_uri": found.checkpoint_uri,
            "digest": model.digest,
            "device": models.device,
            "looked_up": models.looked,
            "trouble": models.trouble,
        }


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return _page_file(request, PAGE)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(request: Request, name: str) -> Response:
        return _page_file(request, name)


def _page_file(request: Request, name: str) -> Response:
    """Answer with a file of the page; `name` is compared with those that there are and is part of no path."""
    for file in PAGE_FILES.iterdir():
        kind = PAGE_KINDS.get(f".{file.name.rpartition('.')[2]}")
        if kind and file.name == name:
            data = file.read_bytes()
            headers = {**REVALIDATE, "ETag": f'"{hashlib.sha256(data).hexdigest()[:20]}"'}
            if headers["ETag"] in _known(request):
                return Response(status_code=304, headers=headers)
            return Response(data, media_type=kind, headers=headers)
    _not_found(name)


def _not_found(name: str) -> NoReturn:
    raise HTTPException(404, f"{shown(name)}: there is no such file")
