"""A decoder may crash, hang or eat memory: it costs one video, in bounded time, and leaves no process."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from vgan.config import DecodeConfig
from vgan.errors import BadVideo
from vgan.video.child import isolated_frames
from vgan.video.decode import frames

ROOT = Path(__file__).resolve().parents[3]


def stub(code: str) -> list[str]:
    """A command that runs `code` where the decoding child would run."""
    return [sys.executable, "-c", textwrap.dedent(code)]


def child_whose_decoder(code: str) -> list[str]:
    """The real child, with its decoder replaced by the body `code` of a generator over (path, config)."""
    body = textwrap.indent(textwrap.dedent(code), "    ")
    return stub(
        f"import os, sys\nimport numpy as np\nimport vgan.video.child as child\nfrom vgan.video.decode import Frame\n"
        f"picture = np.zeros((4, 6, 3), np.uint8)\n"
        f"def frames(path, config):\n{body}\nchild.frames = frames\nchild.main(sys.argv[1:])"
    )


def processes_naming(path: Path) -> list[int]:
    """Ids of live processes with `path` among their arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(path) in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def failure(command: list[str], **settings: float) -> tuple[BadVideo, int]:
    """The BadVideo a child ends in, and how many frames came before it."""
    got = []
    with pytest.raises(BadVideo) as caught:
        got.extend(isolated_frames("any.mp4", DecodeConfig(**settings), command))
    assert caught.value.stage == "decode"
    return caught.value, len(got)


def test_isolated_frames_equal_frames(make_video):
    path = make_video(num_frames=30)
    near, far = list(frames(path, DecodeConfig())), list(isolated_frames(path, DecodeConfig()))
    assert [frame.pts_s for frame in far] == [frame.pts_s for frame in near]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(near, far, strict=True))


@pytest.mark.parametrize("name", ["-i.mp4", "--", "a bé $(x) '.mp4", "a:b.mp4", "x\udcff.mp4"])
def test_isolated_frames_take_any_file_name(make_video, monkeypatch, name):
    path = make_video(name="plain.mp4", num_frames=3)
    path.rename(path.with_name(name))
    monkeypatch.chdir(path.parent)
    assert len(list(isolated_frames(name, DecodeConfig()))) == 3


def test_isolated_frames_pass_on_the_decoders_reason(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(BadVideo) as caught:
        next(isolated_frames(tmp_path / "empty.mp4", DecodeConfig()))
    assert caught.value.reason == "cannot_open"


def test_isolated_frames_segfault_after_a_frame_is_crashed():
    fault, num_frames = failure(child_whose_decoder("yield Frame(0.0, picture)\nos.kill(os.getpid(), 11)"))
    assert (fault.reason, fault.detail, num_frames) == ("crashed", "signal 11", 1)


def test_isolated_frames_silence_is_a_timeout():
    started_s = time.monotonic()
    fault, num_frames = failure(
        child_whose_decoder("yield Frame(0.0, picture)\nimport time\ntime.sleep(600)"), timeout_s=2.0
    )
    assert (fault.reason, num_frames) == ("timeout", 1)
    assert time.monotonic() - started_s < 10


def test_isolated_frames_deaf_decoder_is_killed():
    fault, _ = failure(
        child_whose_decoder("import signal, time\nsignal.signal(15, signal.SIG_IGN)\nwhile True: pass\nyield"),
        timeout_s=1.0,
    )
    assert fault.reason == "timeout"


def test_isolated_frames_memory_hog_is_stopped():
    hog = "held = []\nwhile True: held.append(np.zeros(1 << 24))\nyield"
    fault, _ = failure(child_whose_decoder(hog), memory_gb=1.0)
    assert fault.reason == "out_of_memory"


def test_isolated_frames_prints_of_native_code_do_not_reach_the_pipe():
    noisy = child_whose_decoder("os.write(1, b'F' * 1000)\nyield Frame(1.5, picture)")
    assert [frame.pts_s for frame in isolated_frames("any.mp4", DecodeConfig(), noisy)] == [1.5]


def test_isolated_frames_bug_in_the_child_is_not_a_bad_video():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(isolated_frames("any.mp4", DecodeConfig(), child_whose_decoder("yield 1 / 0")))


def test_isolated_frames_child_waits_for_a_slow_reader(tmp_path):
    counter = tmp_path / "counter"
    endless = child_whose_decoder(
        f"""
        big = np.zeros((128, 228, 3), np.uint8)
        for i in range(10**6):
            open({str(counter)!r}, "w").write(str(i))
            yield Frame(float(i), big)
        """
    )
    source = isolated_frames("any.mp4", DecodeConfig(), endless)
    next(source)
    time.sleep(0.5)
    assert int(counter.read_text()) <= 3
    source.close()


def test_isolated_frames_closed_early_leave_no_process(make_video):
    path = make_video(num_frames=200)
    source = isolated_frames(path, DecodeConfig())
    next(source)
    assert len(processes_naming(path)) == 1
    source.close()
    assert processes_naming(path) == []


def test_isolated_frames_child_dies_with_its_parent(make_video):
    path = make_video(num_frames=200)
    code = (
        "import sys, time\nfrom vgan.config import DecodeConfig\nfrom vgan.video.child import isolated_frames\n"
        "source = isolated_frames(sys.stdin.readline().strip(), DecodeConfig())\n"
        "next(source)\nprint('ready', flush=True)\ntime.sleep(600)"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as parent:
        parent.stdin.write(f"{path}\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "ready\n"
        assert len(processes_naming(path)) == 1
        parent.send_signal(signal.SIGKILL)
    deadline_s = time.monotonic() + 10
    while processes_naming(path) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert processes_naming(path) == []


def test_child_imports_only_what_decoding_needs():
    code = (
        "import sys, vgan.video.child; print([m for m in ('torch', 'cv2', 'decord', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def outcome(path: Path) -> tuple[str, int]:
    """How decoding `path` ends ("ok" or the reason) and how many frames it gives."""
    num_frames = 0
    try:
        for _ in isolated_frames(path, DecodeConfig(timeout_s=20)):
            num_frames += 1
    except BadVideo as fault:
        return fault.reason, num_frames
    return "ok", num_frames


@pytest.mark.slow
def test_isolated_frames_of_every_odd_file_end_in_frames_or_a_reason(shared):
    """76 files of five projects' test suites, many broken on purpose; 15 to 35 s on one core."""
    folder = shared / "data/odd"
    paths = sorted(each for each in folder.rglob("*") if each.is_file() and each.parent != folder)
    outcomes = [outcome(path) for path in paths]
    assert all((num_frames > 0) == (reason in ("ok", "corrupt")) for reason, num_frames in outcomes)
    counts = collections.Counter(reason for reason, _ in outcomes)
    assert counts == {"ok": 56, "no_frames": 8, "cannot_open": 7, "no_video_stream": 3, "corrupt": 2}
