"""Opening of video files with allow-listed demuxers, and decoding packet by packet, past damaged ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av

from vgan.errors import VideoError, first_line

# Demuxers of one file that contains a video, a picture or (to name the reason "no_video_stream") sound. Left out on
# purpose: all that open other files or addresses (concat, hls, dash, image2, sdp, rtsp, imf, webm_dash_manifest),
# devices, and formats of games and raw samples, which nobody records video in.
DEMUXERS = (
    *("apng", "asf", "av1", "avi", "dv", "flv", "gif", "h261", "h263", "h264", "hevc", "ivf", "m4v", "matroska"),
    *("mjpeg", "mov", "mpeg", "mpegts", "mpegvideo", "mxf", "nut", "obu", "ogg", "rm", "vc1", "webm", "wtv"),
    *("yuv4mpegpipe", "bmp_pipe", "jpeg_pipe", "png_pipe", "tiff_pipe", "webp_pipe"),
    *("aac", "ac3", "flac", "mp3", "wav"),
)
# Formats without timestamps: frames get the times of the stream's rate.
UNTIMED = frozenset({"h261", "h263", "h264", "hevc", "m4v", "mjpeg", "mpegvideo", "obu", "vc1"})
# Packets without a picture after which decoding ends: the longest groups of pictures of H.264 encoders have 250.
MAX_LOST_PACKETS = 1000


@dataclass(frozen=True, slots=True)
class Video:
    """Open file and its main video stream."""

    container: av.container.InputContainer
    stream: av.VideoStream

    @property
    def format(self) -> str:
        """FFmpeg's name of the demuxer."""
        return self.container.format.name

    @property
    def interval_s(self) -> float | None:
        """Interval between frames by the stream's rate, seconds; None if it has no rate."""
        # The rate of a format without times is that of the codec; 25 is the demuxer's default.
        estimated = self.stream.guessed_rate if self.format in UNTIMED else self.stream.average_rate
        rate = estimated or self.stream.guessed_rate
        return float(1 / rate) if rate else None


@contextmanager
def open_video(path: str | Path) -> Iterator[Video]:
    """Open the main video stream of a file; errors of opening, and of decoding in the block, become VideoError."""
    opened = False
    try:
        with av.open(
            f"file:{os.fspath(path)}",  # without the scheme FFmpeg reads "a:b.mp4" as protocol a
            # A playlist must not make the decoder open addresses, or files beside it.
            options={"protocol_whitelist": "file", "format_whitelist": ",".join(DEMUXERS)},
            metadata_errors="ignore",
        ) as container:
            stream = _main_stream(container)
            opened = True
            yield Video(container, stream)
    except MemoryError as error:
        raise VideoError("decode", "out_of_memory", str(error)) from error
    except (av.FFmpegError, ValueError) as error:  # PyAV raises ValueError for pixel formats it cannot convert
        raise VideoError("decode", "no_frames" if opened else "cannot_open", first_line(error)) from error


def _main_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Return FFmpeg's choice among the video streams, without cover pictures of music, set to decode on one thread."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise VideoError("decode", "no_video_stream", f"{len(container.streams)} other streams")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise VideoError("decode", "cannot_open", "no decoder for this codec")
    stream.thread_type = "NONE"  # many decoders share a machine, one per core
    stream.codec_context.thread_count = 1
    return stream


def decode_packets(video: Video, on_lost: Callable[[av.Packet | None, str], None]) -> Iterator[av.VideoFrame]:
    """Yield the decoded frames from the container's current position; an undecodable packet costs only its frames.

    Args:
        video: open file.
        on_lost: called with each packet that cannot be decoded, None for one that cannot be read, and the error's text.

    Raises:
        av.FFmpegError: that of the last of MAX_LOST_PACKETS packets without any frame.
    """
    num_lost = 0
    packets = video.container.demux(video.stream)
    while True:
        packet = None
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = packet.decode()
        except MemoryError:
            raise
        except av.FFmpegError as error:
            num_lost += 1
            if num_lost == MAX_LOST_PACKETS:
                raise
            if packet is None:  # the error ended this iterator; a new one reads on
                packets = video.container.demux(video.stream)
            on_lost(packet, first_line(error))
            continue
        if frames:
            num_lost = 0
        yield from frames
