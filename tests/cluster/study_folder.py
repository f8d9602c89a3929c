"""Small study of synthetic clips, made by the job itself, and a server for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from cluster.study.rating_server import RatingServer
from vgan.synthetic.clips import draw_clip
from vgan.video.encode import write_mp4

KINDS = {"two_stream": "Spin", "one_stream": "Bounce", "real": "Circle"}


def draw_folders(place: Path, num: int = 3, num_frames: int = 8) -> dict[str, Path]:
    """Write folders of 64-pixel clips per method and of real clips, with an overview file that is not a clip."""
    for method, kind in KINDS.items():
        (place / method).mkdir(parents=True)
        for index in range(num):
            clip = draw_clip(kind, num_frames=num_frames, size=(64, 64), seed=index)
            write_mp4(clip.frames, place / method / f"sample-{index:04d}.mp4", 25.0)
    write_mp4(clip.frames.repeat(2, 1), place / "two_stream" / "grid.mp4", 25.0)
    return {method: place / method for method in KINDS}


def make_words(place: Path, **more: int) -> list[str]:
    """Return the arguments of jobs.study that make a study of these clips in place/study."""
    settings = {"num_frames": 8, "trials_per_cell": 4, "trials_per_rater": 8, "gold_per_rater": 2} | more
    methods = f"methods={{two_stream: {place}/two_stream, one_stream: {place}/one_stream}}"
    argv = [f"{key}={value}" for key, value in settings.items()]
    return ["action=make", methods, f"real={place}/real", f"out={place}/study", *argv]


@asynccontextmanager
async def serving(server: RatingServer) -> AsyncIterator[str]:
    runner = web.AppRunner(server.app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
