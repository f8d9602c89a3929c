"""Every figure of prepare in one run: `make bench-prepare`. Prints tables; asserts nothing.

Decoders by codec, cuts, stabilization compared with the original algorithm, memory of a worker on a one-hour video,
windows rejected by each preset of the filters, and the whole job on Ray compared with plain processes. Real test videos
are read from ../shared; without them, the tables that need them are left out.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import av
import cv2
import decoding
import numpy as np
import shots
import stabilization

from cluster.prepare.packing import PackingConfig
from cluster.prepare.pipeline import prepare
from cluster.prepare.process_unit import num_segments, segment_bounds
from cluster.runtime.ray_session import ray_session
from cluster.sources.manifest import list_folder
from vgan.errors import VideoError
from vgan.records import Clip
from vgan.video.clip_extraction import extract_clips
from vgan.video.config import FILTER_PRESETS, FilterConfig, VideoConfig
from vgan.video.decoding.isolated_decoder import Decoder
from vgan.video.quality_filters import first_violation

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CORES = 2
COPIES = 3  # of each video in the whole job: one pass is 40 s, of which starting and ending Ray would be a fifth


@dataclass(frozen=True)
class Yield:
    """What one video gave: frames decoded, seconds, clips, rejects by reason."""

    frames: int
    seconds: float
    clips: int
    rejects: Counter[str]


def one_video(path: str, config: VideoConfig, decoder: Decoder) -> Yield:
    """The kernel: what a Ray task does between fetching and writing, the gates included."""
    start, num_frames, num_clips, rejects = time.perf_counter(), 0, 0, Counter[str]()

    def counted():
        nonlocal num_frames
        for frame in decoder.frames(path):
            num_frames += 1
            yield frame

    try:
        decoder.probe(path)
        for item in extract_clips(counted(), config):
            if isinstance(item, Clip):
                found = first_violation(item.evidence, config.filters)
                num_clips += found is None
                rejects.update([f"gates: {found[0]}"] if found else [])
            else:
                rejects[f"{item.stage}: {item.reason}"] += 1
    except VideoError as fault:
        rejects[f"{fault.stage}: {fault.reason}"] += 1
    return Yield(num_frames, time.perf_counter() - start, num_clips, rejects)


def plain_worker(paths: multiprocessing.Queue, results: multiprocessing.Queue, config: VideoConfig) -> None:
    """A process that takes videos until it meets None; the first item it puts says that it is ready."""
    cv2.setNumThreads(1)
    with Decoder(config.decode) as decoder:
        results.put("ready")
        for path in iter(paths.get, None):
            results.put(one_video(path, config, decoder))


def plain_processes(paths: list[str], config: VideoConfig) -> tuple[float, list[Yield]]:
    """Seconds, without start-up, and what each video gave, on CORES processes."""
    spawn = multiprocessing.get_context("spawn")
    todo, results = spawn.Queue(), spawn.Queue()
    workers = [spawn.Process(target=plain_worker, args=(todo, results, config)) for _ in range(CORES)]
    for worker in workers:
        worker.start()
    for _ in workers:
        assert results.get() == "ready"
    start = time.perf_counter()
    for path in [*paths, *[None] * CORES]:
        todo.put(path)
    found = [results.get() for _ in paths]
    seconds = time.perf_counter() - start
    for worker in workers:
        worker.join()
    return seconds, found


def whole_job(config: VideoConfig) -> None:
    """The same videos by plain processes and by the job on Ray, one after the other."""
    videos = list_folder(str(SHARED / "ucf101" / "UCF-101"))[0]
    sources = [replace(s, source_id=f"copy{k}/{s.source_id}") for k in range(COPIES) for s in videos]
    seconds, found = plain_processes([s.uri for s in sources], config)
    num_frames = sum(y.frames for y in found)
    print(f"\nWhole job, {len(videos)} UCF101 videos {COPIES} times, {num_frames} frames, ", end="")
    print(f"{CORES} processes or Ray CPUs")
    print(f"{'':<34}{'seconds':>9}{'frames/s':>10}{'ratio':>7}")
    print(f"{'plain processes':<34}{seconds:>9.1f}{num_frames / seconds:>10.0f}{1:>7.2f}")
    with tempfile.TemporaryDirectory() as scratch, ray_session() as _:
        warm = videos[:: len(videos) // 4]
        prepare(warm, f"{scratch}/warm", config, PackingConfig())  # starts the workers, as a running cluster has
        start = time.perf_counter()
        prepare(sources, f"{scratch}/clips", config, PackingConfig())
        ray_s = time.perf_counter() - start
    ratio = seconds / ray_s
    print(f"{'prepare on Ray, shards written':<34}{ray_s:>9.1f}{num_frames / ray_s:>10.0f}{ratio:>7.2f}")


def reject_table() -> None:
    """Share of the windows of real video that each preset of the filters rejects; the paper lost 3 %."""
    print("\nReject rate (share of windows without a clip; the paper lost 3 % to stabilization alone) and reasons")
    print(f"{'filters.preset':<16}{'videos':<24}{'windows':>8}{'clips':>7}{'rejected':>10}  reasons")
    for preset, name in product(FILTER_PRESETS, ("ucf101/UCF-101", "generic", "shaky")):
        config = VideoConfig(filters=FilterConfig(preset=preset, **FILTER_PRESETS[preset]))
        paths = [s.uri for s in list_folder(str(SHARED / name))[0]]
        _, found = plain_processes(paths, config)
        rejects = sum((y.rejects for y in found), Counter[str]())
        clips = sum(y.clips for y in found)
        windows = clips + sum(n for reason, n in rejects.items() if not reason.startswith(("decode", "shots")))
        reasons = ", ".join(f"{n} {reason}" for reason, n in rejects.most_common())
        rejected = 1 - clips / windows if windows else 0
        print(f"{preset:<16}{f'{len(paths)} of {name}':<24}{windows:>8}{clips:>7}{rejected:>10.1%}  {reasons}")


def write_hour(path: Path) -> None:
    """One hour of 1080p H.264 at 25 frames a second: twenty seconds of moving texture, packets repeated."""
    texture = cv2.resize(np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8), (2560, 1440))
    with av.open(str(path.with_suffix(".part.mp4")), "w") as part:
        stream = part.add_stream("libx264", rate=Fraction(25), options={"preset": "ultrafast", "g": "50", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for t in range(500):
            x, y = int(300 + 250 * np.sin(t / 40)), int(180 + 150 * np.cos(t / 30))
            picture = np.ascontiguousarray(texture[y : y + 1080, x : x + 1920])
            part.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        part.mux(stream.encode())
    with av.open(str(path), "w") as whole:
        copy = None
        for repeat in range(180):
            with av.open(str(path.with_suffix(".part.mp4"))) as part:
                source = part.streams.video[0]
                copy = copy or whole.add_stream_from_template(source)
                length = round(20 / source.time_base)
                for packet in part.demux(source):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + repeat * length, packet.dts + repeat * length
                    packet.stream = copy
                    whole.mux(packet)


def hour_in_this_process(path: str) -> None:
    """Every segment of the video as prepare does them; prints seconds, clips and peak memory of worker and decoder."""
    config = VideoConfig()
    start, clips = time.perf_counter(), 0
    with Decoder(config.decode) as decoder:
        duration_s = decoder.probe(path).duration_s
        segments = num_segments(duration_s, config.decode.segment_s)
        share = replace(config, clip=replace(config.clip, max_per_video=-(-config.clip.max_per_video // segments)))
        for segment in range(segments):
            start_s, end_s, _ = segment_bounds(duration_s, segment, segments)
            frames = decoder.frames(path, start_s, end_s)
            clips += sum(isinstance(item, Clip) for item in extract_clips(frames, share))
    # ru_maxrss of this process would hold that of the one that started it.
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    peaks = int(own.split()[1]) / 1e6, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    seconds = time.perf_counter() - start
    print(f"{duration_s:.0f} s in {segments} segments: {clips} clips in {seconds:.0f} s; ", end="")
    print(f"peak memory {peaks[0]:.2f} GB in the worker, {peaks[1]:.2f} GB in its decoder")


def memory_of_an_hour() -> None:
    """Peak memory on a one-hour 1080p video, in a process of its own."""
    print("\nOne hour of 1080p H.264", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "hour.mp4"
        write_hour(path)
        subprocess.run([sys.executable, __file__, "hour", str(path)], check=True)


def main() -> None:
    """All tables, cheapest first."""
    cv2.setNumThreads(1)
    decoding.main()
    shots.main()
    stabilization.main()
    memory_of_an_hour()
    if not SHARED.is_dir():
        print(f"\nno real videos at {SHARED}: the tables of the whole job and of rejects are left out")
        return
    reject_table()
    whole_job(replace(VideoConfig(), filters=FilterConfig(disabled=["near_duplicate"])))


if __name__ == "__main__":
    if sys.argv[1:2] == ["hour"]:
        hour_in_this_process(sys.argv[2])
    else:
        main()
