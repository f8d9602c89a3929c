"""A server that speaks Flickr's documented REST protocol, with videos of its own, its limits and its faults.

https://www.flickr.com/services/api/: flickr.photos.search, flickr.photos.getSizes, flickr.photos.licenses.getInfo; JSON
answers, stat=fail with a code and a message, at most 4,000 results of one search. Run as a program it serves until it
is ended and prints its port.
"""

from __future__ import annotations

import http.server
import json
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

KEY = "0123456789abcdef-secret"
LICENSES = [
    (0, "All Rights Reserved", ""),
    (4, "Attribution License", "https://creativecommons.org/licenses/by/2.0/"),
    (5, "Attribution-ShareAlike License", "https://creativecommons.org/licenses/by-sa/2.0/"),
    (9, "Public Domain Dedication (CC0)", "https://creativecommons.org/publicdomain/zero/1.0/"),
]
DAY = 86_400
BEGIN = 1_262_304_000  # 2010-01-01


@dataclass
class Library:
    """What the server has, what it was asked, and what goes wrong."""

    num: int = 30  # videos, one a day from BEGIN on, three in four with the tag "beach"
    per_day: int = 1
    results: int = 4000  # shown of one search
    gone: tuple[int, ...] = ()  # videos whose files cannot be had
    faults: list[Any] = field(default_factory=list)  # each met by one call: a status, or a (code, message)
    die_after: int = 0  # from this call on, no answer: the client is to be killed
    asked: list[dict[str, str]] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)  # of urls: the key must not be there
    lock: Any = field(default_factory=threading.Lock)

    def video(self, number: int) -> dict[str, Any]:
        return {
            "id": str(1000 + number),
            "owner": f"{number % 7}@N00",
            "ownername": f"Ann \u00e9 {number % 7}",
            "license": str(LICENSES[number % 4][0]),
            "tags": f"{'beach' if number % 4 else 'golf'} sea",
            "media": "video",
        }

    def search(self, asked: dict[str, str]) -> dict[str, Any]:
        low, high = int(asked["min_upload_date"]), int(asked["max_upload_date"])
        allowed = asked.get("license", "").split(",") if asked.get("license") else None
        words = set(asked.get("tags", asked.get("text", "")).split(","))
        hits = []
        for number in range(self.num):
            video = self.video(number)
            uploaded = BEGIN + number // self.per_day * DAY
            in_words = words & set(video["tags"].split())
            if low <= uploaded <= high and in_words and (allowed is None or video["license"] in allowed):
                hits.append(video)
        size, page = int(asked["per_page"]), int(asked["page"])
        shown = hits[: self.results]
        rows = shown[(page - 1) * size : page * size]
        total = {"page": page, "perpage": size, "pages": -(-len(hits) // size), "total": str(len(hits))}
        return {"photos": {**total, "photo": rows}, "stat": "ok"}

    def answer(self, asked: dict[str, str]) -> dict[str, Any]:
        if asked.get("api_key") != KEY:
            return {"stat": "fail", "code": 100, "message": "Invalid API Key (Key has invalid format)"}
        if asked["method"] == "flickr.photos.licenses.getInfo":
            rows = [{"id": number, "name": name, "url": url} for number, name, url in LICENSES]
            return {"licenses": {"license": rows}, "stat": "ok"}
        if asked["method"] == "flickr.photos.search":
            return self.search(asked)
        if asked["method"] == "flickr.photos.getSizes":
            video = asked["photo_id"]
            if int(video) - 1000 in self.gone:
                return {"stat": "fail", "code": 1, "message": "Photo not found"}
            files = [
                ("Video Player", 640, 360),
                ("Mobile MP4", 480, 270),
                ("Site MP4", 640, 360),
                ("HD MP4", 1280, 720),
            ]
            sizes = [
                {"label": label, "width": w, "height": str(h), "media": "video", "source": f"https://v/{video}/{h}.mp4"}
                for label, w, h in files
            ]
            image = {"label": "Square", "width": 75, "height": 75, "media": "photo", "source": "https://v/s.jpg"}
            local = {"label": "Odd MP4", "width": 640, "height": 360, "media": "video", "source": "file:///etc/passwd"}
            return {"sizes": {"size": [image, local, *sizes]}, "stat": "ok"}
        return {"stat": "fail", "code": 112, "message": f"Method {asked['method']!r} not found"}

    def calls(self, method: str) -> list[dict[str, str]]:
        return [asked for asked in self.asked if asked["method"].endswith(method)]


@contextmanager
def serving(library: Library) -> Iterator[str]:
    """The server's url, for the length of the block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked = dict(urllib.parse.parse_qsl(body))
            with library.lock:
                library.asked.append(asked)
                library.queries.append(self.path)
                fault = library.faults.pop(0) if library.faults else None
                stuck = library.die_after and len(library.asked) > library.die_after
            if stuck:
                threading.Event().wait(60)
            if fault == "cut":
                self.close_connection = True
                return
            if isinstance(fault, int):
                self.send_error(fault)
                return
            found = {"stat": "fail", "code": fault[0], "message": fault[1]} if fault else library.answer(asked)
            data = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/services/rest/"
        server.shutdown()
        thread.join()


if __name__ == "__main__":
    with serving(Library(num=int(sys.argv[1]), per_day=int(sys.argv[2]))) as url:
        print(url, flush=True)
        threading.Event().wait()
