"""`/v1/videos`: videos as jobs, in the shape of OpenAI's videos API as open servers keep it.

Input: a queue of videos. Output: routes to create, get, list, download and delete. What differs from OpenAI:
the voice, and that the length follows from it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, Path, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from lipcast.config.models import VIDEO_FPS
from lipcast.jobs.progress import progress
from lipcast.jobs.store import FAILED, FINISHED, RUNNING, WAITING, Job, Segment
from lipcast.media.stills import write_spritesheet, write_thumbnail
from lipcast.serve.problems import responses
from lipcast.serve.security import HEADERS, VIDEOS_PATH
from lipcast.serve.video_form import TEXTS, read_form
from lipcast.serve.video_queue import VIDEO, VideoQueue, model_name

_POLL_MS = 1000
_STATUS = {WAITING: "queued", RUNNING: "in_progress", FINISHED: "completed", FAILED: "failed"}
_MAX_LIMIT = 100
_MADE_OF_VIDEO = {"thumbnail": write_thumbnail, "spritesheet": write_spritesheet}
_EXAMPLE: dict[str, Any] = {
    "id": "video_0123456789abcdef01234567", "object": "video", "model": "tiny",
    "status": "completed", "progress": 100, "created_at": 1795867200, "completed_at": 1795867260,
    "expires_at": 1795953660, "prompt": "a calm man, friendly", "seconds": "4.2", "size": "256x256",
    "error": None, "fps": 25, "num_frames": 108, "duration_s": 4.32, "inference_time_s": 58.1,
    "stage_durations": {"denoise_s": 40.2},
}  # fmt: skip
_BINARY = {"type": "string", "format": "binary"}
_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["input_reference", "audio_reference"],
    "additionalProperties": False,
    "properties": {
        "input_reference": {**_BINARY, "description": "Portrait: a picture, or a data URL of one."},
        "audio_reference": {
            **_BINARY,
            "description": "Voice: a sound file, a data URL, or JSON such as "
            '{"audio_url": "data:audio/wav;base64,..."}. Nothing is fetched from addresses.',
        },
        "prompt": {"type": "string", "maxLength": 2000, "description": "How the person behaves."},
        "model": {"type": "string", "description": "Name of the server's model."},
        "size": {
            "type": "string", "pattern": r"^[0-9]{1,5}[x*][0-9]{1,5}$",
            "description": "An area; the portrait decides the aspect.",
        },
        "seconds": {"type": "string", "description": "The voice is cut after so long."},
        "seed": {"type": "string", "pattern": "^[0-9]{1,19}$"},
        "num_inference_steps": {"type": "string", "pattern": "^[1-8]$"},
    },
    "example": {
        "input_reference": "me.png", "audio_reference": "hello.wav",
        "prompt": "a calm man, friendly", "size": "256x256", "seed": "7",
    },
}  # fmt: skip
assert set(TEXTS) < set(_FORM["properties"])


class VideoError(BaseModel):
    """Why a video failed."""

    code: str
    message: str


class Video(BaseModel):
    """A video, whole or not yet."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(description="Percent.", ge=0, le=100)
    created_at: int = Field(description="Seconds since 1970, as all times here.")
    completed_at: int | None
    expires_at: int | None = Field(description="When it is deleted.")
    prompt: str
    seconds: str = Field(description="Length of the voice.")
    size: str = Field(description="Width x height; until the first segment the size asked for.")
    error: VideoError | None
    remixed_from_video_id: None = None
    fps: int = VIDEO_FPS
    num_frames: int = Field(description="Pictures that are finished.")
    duration_s: float
    inference_time_s: float
    stage_durations: dict[str, float]


class VideoList(BaseModel):
    """Videos, and whether there are more."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """A video that is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


_Id = Annotated[str, Path(max_length=64, description="Name of the video.")]


def add_videos(app: FastAPI, queue: VideoQueue) -> None:
    """Add the routes."""
    _add_create(app, queue)
    _add_reading(app, queue)
    _add_content(app, queue)


def _add_create(app: FastAPI, queue: VideoQueue) -> None:
    body = {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}

    @app.post(
        VIDEOS_PATH,
        responses=responses(400, 413, 415, 422, 429, 503, 507),
        openapi_extra={"requestBody": body},
        tags=["videos"],
    )
    async def create_video(
        request: Request,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> Video:
        """Submit a video of a portrait that speaks. The same Idempotency-Key gives the same video."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise HTTPException(415, "expected multipart/form-data with a portrait and a voice")
        most = queue.settings.max_upload_bytes + queue.settings.max_voice_bytes
        async with request.form(max_files=4, max_fields=12, max_part_size=most) as sent:
            form = read_form(
                sent,
                model=model_name(queue.made_with),
                options=queue.options,
                settings=queue.settings,
            )
            job = await asyncio.to_thread(queue.add, form, key=idempotency_key)
        return _video(queue, job, queue.store.segments(job.id))


def _add_reading(app: FastAPI, queue: VideoQueue) -> None:
    @app.get(VIDEOS_PATH, responses=responses(404, 422, 507), tags=["videos"])
    def list_videos(
        after: Annotated[str | None, Query(max_length=64, description="The last one seen.")] = None,
        limit: Annotated[int, Query(ge=0, le=_MAX_LIMIT)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """List the videos, the newest first."""
        jobs = queue.jobs()
        if order == "desc":
            jobs.reverse()
        if after is not None:
            places = [place for place, job in enumerate(jobs) if job.id == after]
            if not places:
                raise _unknown()
            jobs = jobs[places[0] + 1 :]
        segments = queue.store.all_segments()
        data = [_video(queue, job, segments.get(job.id, {})) for job in jobs[:limit]]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        has_more = len(jobs) > len(data)
        return VideoList(data=data, first_id=first, last_id=last, has_more=has_more)

    @app.get(f"{VIDEOS_PATH}/{{video_id}}", responses=responses(404, 422, 507), tags=["videos"])
    def get_video(video_id: _Id, response: Response) -> Video:
        """Return a video, and how far it is."""
        job = _found(queue, video_id)
        if job.state in {WAITING, RUNNING}:
            response.headers["openai-poll-after-ms"] = str(_POLL_MS)
        return _video(queue, job, queue.store.segments(job.id))

    @app.delete(f"{VIDEOS_PATH}/{{video_id}}", responses=responses(404, 422, 507), tags=["videos"])
    def delete_video(video_id: _Id) -> VideoDeleted:
        """Delete a video and its files; one that is being made is aborted."""
        queue.delete(_found(queue, video_id).id)
        return VideoDeleted(id=video_id)


def _add_content(app: FastAPI, queue: VideoQueue) -> None:
    described: dict[int | str, dict[str, Any]] = {
        200: {"content": {"video/mp4": {"schema": _BINARY}, "image/png": {"schema": _BINARY}}},
        206: {"description": "A part", "content": {"video/mp4": {"schema": _BINARY}}},
        416: {"description": "No such part", "content": {"text/plain": {}}},
        **responses(404, 422, 507),
    }

    @app.get(
        f"{VIDEOS_PATH}/{{video_id}}/content",
        responses=described,
        response_class=FileResponse,
        tags=["videos"],
    )
    def get_content(
        video_id: _Id, variant: Literal["video", "thumbnail", "spritesheet"] = "video"
    ) -> FileResponse:
        """Return the file, or a part of it (Range); or a picture of it."""
        job = _found(queue, video_id)
        if job.state == FAILED:
            raise HTTPException(422, f"this video failed: {job.error}")
        if job.state != FINISHED:
            raise HTTPException(404, "this video is not finished yet; ask for it again later")
        path = queue.store.folder(job.id) / VIDEO
        kind, name = "video/mp4", f"{job.id}.mp4"
        if variant != "video":
            video, path = path, path.with_name(f"{variant}.png")
            kind, name = "image/png", f"{job.id}-{variant}.png"
            if not path.exists():
                _MADE_OF_VIDEO[variant](video, path)
        if not path.is_file():
            raise _unknown()
        headers = {**HEADERS, "cache-control": "private, no-cache"}
        return FileResponse(path, media_type=kind, filename=name, headers=headers)


def _found(queue: VideoQueue, name: str) -> Job:
    job = queue.find(name)
    if job is None:
        raise _unknown()
    return job


def _unknown() -> HTTPException:
    return HTTPException(404, "no such video; it may have been deleted")


def _video(queue: VideoQueue, job: Job, segments: Mapping[int, Segment]) -> Video:
    ended, keep_s = queue.ended_s(job), queue.settings.keep_videos_s
    num_frames = progress(job, segments.values()).num_frames
    durations: Counter[str] = Counter()
    for segment in segments.values():
        durations.update(segment.report.get("seconds", {}))
    is_failed = job.state == FAILED
    return Video(
        id=job.id,
        model=model_name(job.request),
        status=_STATUS[job.state],  # type: ignore[arg-type]
        progress=int(100 * queue.progress(job, len(segments))),
        created_at=int(job.submitted_s),
        completed_at=None if ended is None else int(ended),
        expires_at=None if ended is None else int(ended + keep_s),
        prompt=job.request["prompt"],
        seconds=f"{job.request['seconds']:g}",
        size=_size(job, segments),
        error=VideoError(code="generation_failed", message=job.error) if is_failed else None,
        num_frames=num_frames,
        duration_s=num_frames / VIDEO_FPS,
        inference_time_s=sum(s.report.get("elapsed_s", 0.0) for s in segments.values()),
        stage_durations={name: round(float(took), 3) for name, took in durations.items()},
    )


def _size(job: Job, segments: Mapping[int, Segment]) -> str:
    for segment in segments.values():
        geometry = segment.report.get("video", {}).get("geometry")
        if geometry is not None:
            return f"{geometry['width']}x{geometry['height']}"
    return str(job.request["options"]["size"] or "").replace("*", "x") or "auto"
