"""A decoder that crashes, hangs or leaks memory costs one video, in bounded time, and leaves no process."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vgan.errors import VideoError
from vgan.video.config import DecodeConfig
from vgan.video.decoding.decode import Frame, frames
from vgan.video.decoding.isolated_decoder import Decoder

ROOT = Path(__file__).resolve().parents[4]


def isolated_frames(path: str | Path, config: DecodeConfig, command: list[str] | None = None) -> Iterator[Frame]:
    """Yield all frames of one file, decoded by a separate `Decoder` that is closed with the iterator."""
    with Decoder(config, command) as decoder:
        yield from decoder.frames(path)


def stub(code: str) -> list[str]:
    """Return a command that runs `code` instead of the decoding child."""
    return [sys.executable, "-c", textwrap.dedent(code)]


def child_whose_decoder(code: str) -> list[str]:
    """Return the command of a child in which `decode.frames` is replaced by a generator with body `code`."""
    body = textwrap.indent(textwrap.dedent(code), "    ")
    return stub(
        f"import os, sys\nimport numpy as np\nimport vgan.video.decoding.isolated_decoder as child\n"
        "from vgan.video.decoding.decode import Frame\n"
        f"picture = np.zeros((4, 6, 3), np.uint8)\n"
        f"def frames(path, config, start_s, end_s, native, on_skip, on_finding):\n{body}\n"
        "child.frames = frames\nchild.main(sys.argv[1:])"
    )


def children_of(parent_id: int) -> list[int]:
    """List the ids of the live children of a process."""
    children = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == parent_id and state != "Z":
                children.append(int(folder.name))
    return children


def failure(command: list[str], **settings: float) -> tuple[VideoError, int]:
    """Return the VideoError raised for a child, and the number of frames before it."""
    decoded = []
    with pytest.raises(VideoError) as caught:
        decoded.extend(isolated_frames("any.mp4", DecodeConfig(**settings), command))
    assert caught.value.stage == "decode"
    return caught.value, len(decoded)


def test_isolated_frames_equal_frames(make_video):
    path = make_video(num_frames=30)
    direct, isolated = list(frames(path, DecodeConfig())), list(isolated_frames(path, DecodeConfig()))
    assert [frame.pts_s for frame in isolated] == [frame.pts_s for frame in direct]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(direct, isolated, strict=True))


@pytest.mark.parametrize("name", ["-i.mp4", "--", "a bé $(x) '.mp4", "a:b.mp4", "x\udcff.mp4"])
def test_isolated_frames_take_any_file_name(make_video, monkeypatch, name):
    path = make_video(name="plain.mp4", num_frames=3)
    path.rename(path.with_name(name))
    monkeypatch.chdir(path.parent)
    assert len(list(isolated_frames(name, DecodeConfig()))) == 3


def test_isolated_frames_pass_on_the_decoders_reason(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(VideoError) as caught:
        next(isolated_frames(tmp_path / "empty.mp4", DecodeConfig()))
    assert caught.value.reason == "cannot_open"


def test_isolated_frames_segfault_after_a_frame_is_crashed():
    error, num_frames = failure(child_whose_decoder("yield Frame(0.0, picture)\nos.kill(os.getpid(), 11)"))
    assert (error.reason, error.detail, num_frames) == ("crashed", "signal 11", 1)


def test_isolated_frames_silence_is_a_timeout():
    started_s = time.monotonic()
    error, num_frames = failure(
        child_whose_decoder("yield Frame(0.0, picture)\nimport time\ntime.sleep(600)"), timeout_s=2.0
    )
    assert (error.reason, num_frames) == ("timeout", 1)
    assert time.monotonic() - started_s < 10


def test_isolated_frames_decoder_that_ignores_signals_is_killed():
    error, _ = failure(
        child_whose_decoder("import signal, time\nsignal.signal(15, signal.SIG_IGN)\nwhile True: pass\nyield"),
        timeout_s=1.0,
    )
    assert error.reason == "timeout"


def test_isolated_frames_memory_leak_is_stopped():
    leak = "arrays = []\nwhile True: arrays.append(np.zeros(1 << 24))\nyield"
    error, _ = failure(child_whose_decoder(leak), memory_gb=1.0)
    assert error.reason == "out_of_memory"


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
    assert int(counter.read_text()) <= 16  # 87 KB each: 1 MiB of pipe buffer and the frame being written
    source.close()


def test_isolated_frames_closed_early_leave_no_process(make_video):
    before = set(children_of(os.getpid()))
    source = isolated_frames(make_video(num_frames=200), DecodeConfig())
    next(source)
    assert len(set(children_of(os.getpid())) - before) == 1
    source.close()
    assert set(children_of(os.getpid())) <= before


def test_decoder_child_dies_with_its_parent(make_video):
    code = (
        "import sys, time\nfrom vgan.video.config import DecodeConfig\n"
        "from vgan.video.decoding.isolated_decoder import Decoder\n"
        "source = Decoder(DecodeConfig()).frames(sys.stdin.readline().strip())\n"
        "next(source)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as parent:
        try:
            parent.stdin.write(f"{make_video(num_frames=200)}\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == "ready\n"
            (child,) = children_of(parent.pid)
        finally:
            parent.kill()
    deadline_s = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_child_imports_only_what_decoding_needs():
    heavy = "('torch', 'cv2', 'decord', 'matplotlib')"
    code = f"import sys, vgan.video.decoding.isolated_decoder; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- one Decoder, many videos ------------------------------------------------------------------------------------


def test_decoder_keeps_its_child_from_video_to_video(make_video):
    path = make_video(num_frames=10)
    before = set(children_of(os.getpid()))
    with Decoder(DecodeConfig()) as decoder:
        children = set()
        for _ in range(3):
            assert len(list(decoder.frames(path))) == 10
            assert decoder.probe(path).width == 170
            children |= set(children_of(os.getpid())) - before
        assert len(children) == 1
        assert decoder.backend.startswith("pyav ")
        assert "libavcodec" in decoder.backend
    assert set(children_of(os.getpid())) <= before


def test_decoder_bad_video_does_not_end_the_child(make_video, tmp_path):
    good, bad = make_video(num_frames=10), tmp_path / "empty.mp4"
    bad.write_bytes(b"")
    before = set(children_of(os.getpid()))
    with Decoder(DecodeConfig()) as decoder:
        list(decoder.frames(good))
        children = set(children_of(os.getpid())) - before
        with pytest.raises(VideoError):
            list(decoder.frames(bad))
        with pytest.raises(VideoError, match="cannot_open"):
            decoder.probe(bad)
        assert len(list(decoder.frames(good))) == 10
        assert set(children_of(os.getpid())) - before == children


def test_decoder_child_is_replaced_after_so_many_requests(make_video, monkeypatch):
    monkeypatch.setattr("vgan.video.decoding.isolated_decoder.REQUESTS_A_CHILD", 2)
    path = make_video(num_frames=3)
    children = set()
    before = set(children_of(os.getpid()))
    with Decoder(DecodeConfig()) as decoder:
        for _ in range(4):
            list(decoder.frames(path))
            children |= set(children_of(os.getpid())) - before
    assert len(children) == 2


def test_decoder_iterator_closed_early_does_not_affect_the_next_video(make_video):
    path = make_video(num_frames=40)
    with Decoder(DecodeConfig()) as decoder:
        before = set(children_of(os.getpid()))
        source = decoder.frames(path)
        next(source)
        source.close()
        assert set(children_of(os.getpid())) <= before
        assert [round(frame.pts_s * 25) for frame in decoder.frames(path)] == list(range(40))


def test_decoder_second_request_ends_the_first_iterator_with_an_error(make_video):
    path = make_video(num_frames=40)
    with Decoder(DecodeConfig()) as decoder:
        source = decoder.frames(path)
        next(source)
        assert len(list(decoder.frames(path))) == 40
        with pytest.raises(RuntimeError, match="another request"):
            next(source)
        assert len(list(decoder.frames(path))) == 40


def test_decoder_after_a_fork_does_not_use_the_parents_child(make_video):
    path = make_video(num_frames=10)
    with Decoder(DecodeConfig()) as decoder:
        list(decoder.frames(path))
        forked = os.fork()
        if forked == 0:
            os._exit(len(list(decoder.frames(path))))  # of a new child
        assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 10
        before = set(children_of(os.getpid()))
        assert len(list(decoder.frames(path))) == 10
        assert set(children_of(os.getpid())) == before


def test_decoder_in_another_thread_does_not_use_a_child_that_will_die_with_the_first(make_video):
    path = make_video(num_frames=100)  # 6.5 MB: the pipe holds a sixth
    done = threading.Event()
    with Decoder(DecodeConfig(backend="pyav")) as decoder:

        def decode_then_wait() -> None:
            list(decoder.frames(path))
            started.set()
            done.wait(60)

        started = threading.Event()
        thread = threading.Thread(target=decode_then_wait)
        thread.start()
        assert started.wait(60)
        source = decoder.frames(path)
        next(source)
        done.set()
        thread.join()  # the kernel kills the children that it started
        assert len(list(source)) == 99


def test_decoder_segments_native_frames_and_names_reach_the_child(make_video):
    odd_name = make_video(name="plain.mp4", num_frames=50)
    odd_name = odd_name.rename(odd_name.with_name("-a\n:é\udcff.mp4"))
    config = DecodeConfig(short_side=64)
    with Decoder(config) as decoder:
        assert [round(frame.pts_s * 25) for frame in decoder.frames(odd_name, 0.5, 1.0)] == list(range(13, 25))
        assert next(decoder.frames(odd_name, native=True)).image.shape == (128, 170, 3)
        assert next(decoder.frames(odd_name)).image.shape == (64, 85, 3)
        assert decoder.probe(odd_name).height == 128


def test_decoder_child_gets_no_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("LC_CTYPE", "C.UTF-8")
    environment = tmp_path / "environment"
    spy = child_whose_decoder(
        f"open({str(environment)!r}, 'w').write(chr(10).join(os.environ))\nyield Frame(0.0, picture)"
    )
    assert len(list(isolated_frames("any.mp4", DecodeConfig(), spy))) == 1
    names = set(environment.read_text().split("\n"))
    assert not names & {"AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"}
    assert {"PATH", "PYTHONPATH", "LC_CTYPE"} <= names
    allowed = re.compile("PATH|HOME|LANG|LANGUAGE|LD_LIBRARY_PATH|PYTHONPATH|TMPDIR|TZ|LC_.*|DECORD_.*|O.*_NUM_THREADS")
    assert [name for name in names if not allowed.fullmatch(name)] == []


# ---- fallback ----------------------------------------------------------------------------------------------------

FAULTS = {
    "crashed": "os.kill(os.getpid(), 11)",
    "timeout": "import time; time.sleep(600)",
    "out_of_memory": "raise child.VideoError('decode', 'out_of_memory', 'none left')",
    "cannot_open": "raise child.VideoError('decode', 'cannot_open', 'odd')",
}


@pytest.mark.parametrize("name", FAULTS)
def test_decoder_first_backend_fails_before_a_frame_second_gets_one_try(name):
    code = f"if config.backend == 'pyav':\n    {FAULTS[name]}\nyield Frame(2.5, picture)"
    with Decoder(DecodeConfig(timeout_s=2.0), child_whose_decoder(code)) as decoder:
        assert [frame.pts_s for frame in decoder.frames("any.mp4")] == [2.5]
        assert decoder.backend.startswith("decord ")


def test_decoder_both_backends_fail_reports_the_first_with_the_second_in_detail():
    code = """
        if config.backend == 'pyav':
            os.kill(os.getpid(), 11)
        raise child.VideoError('decode', 'no_frames', 'x')
        yield
    """
    error, _ = failure(child_whose_decoder(code))
    assert (error.reason, error.detail) == ("crashed", "signal 11; decord: no_frames (x)")


def test_decoder_named_backend_has_no_fallback():
    code = "if config.backend == 'pyav':\n    os.kill(os.getpid(), 11)\nyield Frame(0.0, picture)"
    error, _ = failure(child_whose_decoder(code), backend="pyav")
    assert (error.reason, error.detail) == ("crashed", "signal 11")


# ---- hostile children --------------------------------------------------------------------------------------------


HOSTILE = {  # name -> body of a script that replaces the child, reason, part of the detail
    "writes_garbage": ("os.write(1, b'garbage' * 1000); time.sleep(600)", "crashed", "unknown message"),
    "closes_its_pipe": ("os.close(1); time.sleep(600)", "timeout", "closed its pipe"),
    "never_ready": ("time.sleep(600)", "timeout", "no frame"),
    "is_killed": ("os.kill(os.getpid(), 9)", "killed", "by another process"),
    "claims_a_huge_frame": ("ready(); send(b'F', 0.0, 2**31, 2**31); time.sleep(600)", "crashed", "a frame of"),
    "claims_an_empty_frame": ("ready(); send(b'F', 0.0, 0, 5); time.sleep(600)", "crashed", "a frame of"),
    "stops_in_mid_frame": ("ready(); send(b'F', 0.0, 9, 9, b'x'); time.sleep(600)", "timeout", "no frame"),
    "dies_in_mid_frame": ("ready(); send(b'F', 0.0, 9, 9, b'x'); os._exit(3)", "crashed", "status 3"),
    "sends_bad_json": ("ready(); send(b'E', 0.0, 3, 0, b'[1,'); time.sleep(600)", "crashed", "not JSON"),
    "sends_a_wrong_treatment": ("ready(); send(b'T', 0.0, 2, 0, b'{}'); time.sleep(600)", "crashed", "wrong form"),
    "sends_damage_at_no_time": (
        "ready(); send(b'D', 0.0, 8, 0, b'[NaN,\"\"]'); time.sleep(600)",
        "crashed",
        "wrong form",
    ),
    "sends_a_wrong_error": ("ready(); send(b'E', 0.0, 3, 0, b'[1]'); time.sleep(600)", "crashed", "wrong form"),
    "time_is_no_number": ("ready(); send(b'F', float('nan'), 1, 1, b'xyz'); time.sleep(600)", "crashed", "nan"),
    "time_stands_still": ("ready()\nwhile True: send(b'F', 1.0, 1, 1, b'xyz')", "crashed", "after one at 1.0"),
    "time_creeps": (
        "ready()\nfor i in range(10**9): send(b'F', i * 1e-9, 1, 1, b'xyz'); time.sleep(0.1)",
        "timeout",
        "per second of video",
    ),
    "skips_for_ever": (
        "ready()\nfor i in range(10**9): send(b'S', i * 1e-9, 0, 0); time.sleep(0.1)",
        "timeout",
        "per second of video",
    ),
    "floods": ("ready()\nfor i in range(10**9): send(b'F', i * 1e-9, 1, 1, b'xyz')", "timeout", "per second of video"),
}


def hostile(code: str) -> list[str]:
    """Return the command of a child that runs `code`: ready() starts the protocol, send() writes a message."""
    return stub(
        "import os, struct, sys, time\n"
        "def send(type_, *fields): os.write(1, struct.pack('<cdII', type_, *fields[:3]) + b''.join(fields[3:]))\n"
        "def ready():\n    send(b'H', 0.0, 0, 0)\n    sys.stdin.readline()\n" + code
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_decoder_hostile_child_ends_in_a_reason_and_the_next_video_is_served(make_video, tmp_path, name):
    code, reason, detail = HOSTILE[name]
    (tmp_path / "hostile").touch()
    # The command fails while the file exists; then the same Decoder must work with a new child.
    command = stub(
        f"import os, sys\nif not os.path.exists({str(tmp_path / 'hostile')!r}):\n"
        "    module = 'vgan.video.decoding.isolated_decoder'\n"
        "    os.execv(sys.executable, [sys.executable, '-P', '-m', module, *sys.argv[1:]])\n"
        f"{hostile(code)[-1]}"
    )
    started_s = time.monotonic()
    with Decoder(DecodeConfig(timeout_s=1.0, backend="pyav"), command) as decoder:
        with pytest.raises(VideoError) as caught:
            for _ in decoder.frames("any.mp4"):
                pass
        assert (caught.value.stage, caught.value.reason) == ("decode", reason)
        assert detail in caught.value.detail
        assert time.monotonic() - started_s < 20  # the deadline is 1 s, but the machine may be busy
        (tmp_path / "hostile").unlink()
        assert len(list(decoder.frames(make_video(num_frames=5)))) == 5


def test_decoder_time_between_frames_does_not_count():
    slow_caller = child_whose_decoder("for i in range(4): yield Frame(i * 1e-3, np.zeros((600, 1000, 3), np.uint8))")
    num_frames = 0
    for _ in isolated_frames("any.mp4", DecodeConfig(timeout_s=1.5, timeout_per_video_second=0.01), slow_caller):
        num_frames += 1
        time.sleep(0.6)
    assert num_frames == 4


def test_decoder_slow_but_steady_child_meets_its_deadline():
    steady = child_whose_decoder("import time\nfor i in range(30): yield Frame(i / 10, picture); time.sleep(0.1)")
    config = DecodeConfig(timeout_s=1.5, timeout_per_video_second=30.0)
    assert len(list(isolated_frames("any.mp4", config, steady))) == 30


def test_decoder_child_with_much_output_cannot_fill_the_disk():
    noisy = child_whose_decoder("for _ in range(100): os.write(2, b'x' * 2**20)\nyield Frame(0.0, picture)")
    with pytest.raises((VideoError, RuntimeError)):
        list(isolated_frames("any.mp4", DecodeConfig(backend="pyav"), noisy))


def outcome(decoder: Decoder, path: Path) -> tuple[str, int]:
    """Decode `path` and return "ok" or the reject reason, and the number of frames."""
    num_frames = 0
    try:
        for _ in decoder.frames(path):
            num_frames += 1
    except VideoError as error:
        return error.reason, num_frames
    return "ok", num_frames


def test_decoder_of_every_odd_file_ends_in_frames_or_a_reason(shared):
    """Decode 76 files of five projects' test suites, many intentionally broken, with one Decoder."""
    folder = shared / "data/odd"
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
    with Decoder(DecodeConfig(timeout_s=20)) as decoder:
        outcomes = [outcome(decoder, path) for path in paths]
    assert all((num_frames > 0) == (reason in ("ok", "corrupt")) for reason, num_frames in outcomes)
    counts = collections.Counter(reason for reason, _ in outcomes)
    assert counts == {"ok": 57, "no_frames": 8, "cannot_open": 7, "no_video_stream": 3, "corrupt": 1}
