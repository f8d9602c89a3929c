"""Local server with Flickr's documented REST protocol, synthetic videos, Flickr's limits and injected faults.

https://www.flickr.com/services/api/: flickr.photos.search, flickr.photos.getSizes, flickr.photos.licenses.getInfo; JSON
responses, stat=fail with a code and a message, at most 4,000 results per search. As a program, it prints its URL and
serves until it is ended.
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
    """Videos of the server, its limits, injected faults, and the requests it received."""

    num: int = 30  # videos, `per_day` per day from BEGIN on, three in four with the tag "beach"
    per_day: int = 1
    results: int = 4000  # maximum per search
    gone: tuple[int, ...] = ()  # videos whose files are not available
    faults: list[Any] = field(default_factory=list)  # one per call: an HTTP status, a (code, message), "cut" or None
    die_after: int = 0  # calls after this number get no response: the test kills the client; 0 disables
    asked: list[dict[str, str]] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)  # paths of requests, which must not contain the key
    lock: Any = field(default_factory=threading.Lock)

    def video(self, number: int) -> dict[str, Any]:
        """Make the search result of video `number`."""
        return {
            "id": str(1000 + number),
            "owner": f"{number % 7}@N00",
            "ownername": f"Ann \u00e9 {number % 7}",
            "license": str(LICENSES[number % 4][0]),
            "tags": f"{'beach' if number % 4 else 'golf'} sea",
            "media": "video",
        }

    def search(self, request: dict[str, str]) -> dict[str, Any]:
        """Answer flickr.photos.search."""
        low, high = int(request["min_upload_date"]), int(request["max_upload_date"])
        allowed = request.get("license", "").split(",") if request.get("license") else None
        words = set(request.get("tags", request.get("text", "")).split(","))
        hits = []
        for number in range(self.num):
            video = self.video(number)
            uploaded = BEGIN + number // self.per_day * DAY
            in_words = words & set(video["tags"].split())
            if low <= uploaded <= high and in_words and (allowed is None or video["license"] in allowed):
                hits.append(video)
        size, page = int(request["per_page"]), int(request["page"])
        visible = hits[: self.results]
        rows = visible[(page - 1) * size : page * size]
        total = {"page": page, "perpage": size, "pages": -(-len(hits) // size), "total": str(len(hits))}
        return {"photos": {**total, "photo": rows}, "stat": "ok"}

    def answer(self, request: dict[str, str]) -> dict[str, Any]:
        """Answer a request without faults."""
        if request.get("api_key") != KEY:
            return {"stat": "fail", "code": 100, "message": "Invalid API Key (Key has invalid format)"}
        if request["method"] == "flickr.photos.licenses.getInfo":
            rows = [{"id": number, "name": name, "url": url} for number, name, url in LICENSES]
            return {"licenses": {"license": rows}, "stat": "ok"}
        if request["method"] == "flickr.photos.search":
            return self.search(request)
        if request["method"] == "flickr.photos.getSizes":
            video = request["photo_id"]
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
        return {"stat": "fail", "code": 112, "message": f"Method {request['method']!r} not found"}

    def calls(self, method: str) -> list[dict[str, str]]:
        """List the received requests whose method ends with `method`."""
        return [request for request in self.asked if request["method"].endswith(method)]


@contextmanager
def serving(library: Library) -> Iterator[str]:
    """Serve a library for the duration of the block; yield the URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            request = dict(urllib.parse.parse_qsl(body))
            with library.lock:
                library.asked.append(request)
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
            response = {"stat": "fail", "code": fault[0], "message": fault[1]} if fault else library.answer(request)
            data = json.dumps(response).encode()
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
