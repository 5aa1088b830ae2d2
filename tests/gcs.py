"""A Google Cloud Storage on loopback: what gcsfs, google-cloud-storage, TensorStore and array_record ask of it.

with serve() as server: ...  # server.url, server.buckets
"""

import contextlib
import json
import re
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OBJECT = r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)"


class Error(Exception):
    """An HTTP status to answer with."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet per answer

    def log_message(self, *args):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):  # a client that was killed, or had read enough
            super().handle()

    def answer(self, status=200, body=b"", **headers):
        if isinstance(body, dict):
            body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_any(self):
        url = urllib.parse.urlsplit(self.path)
        self.query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query, keep_blank_values=True).items()}
        self.body = self.read_body()
        try:
            with self.server.lock:
                self.server.requests.append(f"{self.command} {self.path}")
                for method, pattern, function in ROUTES:
                    if method == self.command and (match := re.fullmatch(pattern, url.path)):
                        return function(self, *map(urllib.parse.unquote, match.groups()))
                raise Error(501)
        except Error as e:
            status = e.args[0]
            self.answer(status, b"" if status == 304 else {"error": {"code": status, "message": f"emulator: {status}"}})

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def objects(self, bucket):
        if bucket not in self.server.buckets:
            raise Error(404)
        return self.server.buckets[bucket]

    def find(self, bucket, name):
        if name not in self.objects(bucket):
            raise Error(404)
        return self.objects(bucket)[name]

    def about(self, bucket, name):
        data, generation, updated = self.find(bucket, name)
        about = {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(data)), "updated": updated}
        return about | {"generation": str(generation), "metageneration": "1", "timeCreated": updated}

    def check(self, bucket, name):
        """The preconditions: 0 stands for an object that is not there."""
        generation = str(self.objects(bucket).get(name, (b"", 0))[1])
        if self.query.get("ifGenerationMatch", generation) != generation:
            raise Error(412)
        if self.query.get("ifGenerationNotMatch") == generation != "0":
            raise Error(304)

    def store(self, bucket, name, data):
        self.check(bucket, name)
        now = time.time_ns()
        updated = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9 // 10**6:03d}Z"
        self.objects(bucket)[name] = bytes(data), now // 1000, updated
        self.answer(200, self.about(bucket, name))

    def bucket(self, bucket):
        self.objects(bucket)
        self.answer(200, {"kind": "storage#bucket", "name": bucket, "id": bucket, "location": "US"})

    def make_bucket(self):
        name = json.loads(self.body)["name"]
        self.server.buckets.setdefault(name, {})
        self.bucket(name)

    def list(self, bucket):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        first, last = self.query.get("startOffset", ""), self.query.get("endOffset", "") or "\U0010ffff"
        entries = {}  # name -> whether it is a prefix
        for name in self.objects(bucket):
            if name.startswith(prefix) and first <= name < last:
                head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                entries[prefix + head + delimiter if found else name] = bool(found)
        names = sorted(n for n in entries if n > self.query.get("pageToken", ""))
        page = names[: int(self.query.get("maxResults") or 1000)]
        answer = {"kind": "storage#objects", "prefixes": [n for n in page if entries[n]]}
        answer["items"] = [self.about(bucket, n) for n in page if not entries[n]]
        self.answer(200, answer | ({"nextPageToken": page[-1]} if len(page) < len(names) else {}))

    def get(self, bucket, name):
        self.check(bucket, name)
        data, generation, _ = self.find(bucket, name)
        if self.query.get("alt") != "media" and not self.path.startswith("/download"):
            return self.answer(200, self.about(bucket, name))
        headers = {"Content_Type": "application/octet-stream", "x-goog-generation": generation}
        if not (match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")):
            return self.answer(200, data, **headers)
        start, end = match.groups()
        first = int(start) if start else max(0, len(data) - int(end))
        last = min(int(end), len(data) - 1) if start and end else len(data) - 1
        if first >= len(data):
            raise Error(416)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
        self.answer(206, data[first : last + 1], **headers)

    def delete(self, bucket, name):
        self.find(bucket, name)
        self.check(bucket, name)
        del self.objects(bucket)[name]
        self.answer(204)

    def move(self, bucket, name, target):
        data = self.find(bucket, name)[0]
        self.store(bucket, target, data)
        del self.objects(bucket)[name]

    def copy(self, bucket, name, to_bucket, target):
        self.store(to_bucket, target, self.find(bucket, name)[0])

    def upload(self, bucket):
        kind, name = self.query.get("uploadType"), self.query.get("name")
        if "upload_id" in self.query:
            return self.resume(bucket)
        if kind == "media":
            return self.store(bucket, name, self.body)
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            about, data = [part.split(b"\n", 1)[1] for part in self.body.split(b"--" + boundary)[1:3]]
            about, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (about, data))
            data = data[: -2 if data.endswith(b"\r\n") else -1]
            return self.store(bucket, name or json.loads(about)["name"], data)
        name = name or json.loads(self.body)["name"]
        self.check(bucket, name)
        key = str(len(self.server.uploads))
        self.server.uploads[key] = name, bytearray(), self.query.get("ifGenerationMatch")
        where = f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}"
        self.answer(200, Location=where)

    def resume(self, bucket):
        name, data, match = self.server.uploads[self.query["upload_id"]]
        data += self.body
        if (self.headers.get("Content-Range") or "").endswith("/*"):
            return self.answer(308, **({"Range": f"bytes=0-{len(data) - 1}"} if data else {}))
        self.query |= {"ifGenerationMatch": match} if match else {}
        self.store(bucket, name, data)


ROUTES = (
    ("POST", r"/storage/v1/b", Handler.make_bucket),
    ("GET", r"/storage/v1/b/([^/]+)", Handler.bucket),
    ("GET", r"/storage/v1/b/([^/]+)/o", Handler.list),
    ("GET", OBJECT, Handler.get),
    ("DELETE", OBJECT, Handler.delete),
    ("POST", OBJECT + r"/moveTo/o/([^/]+)", Handler.move),
    ("POST", OBJECT + r"/(?:copyTo|rewriteTo)/b/([^/]+)/o/([^/]+)", Handler.copy),
    ("POST", r"/upload/storage/v1/b/([^/]+)/o", Handler.upload),
    ("PUT", r"/upload/storage/v1/b/([^/]+)/o", Handler.upload),
)


class Server(ThreadingHTTPServer):
    """With room for the many connections that array_record and TensorStore open at once: else 1 s of waiting each."""

    request_queue_size = 128
    daemon_threads = True


@contextlib.contextmanager
def serve(port=0, bucket="bucket"):
    """Serves an empty bucket from a thread; yields the server, with .url, .buckets and .requests."""
    server = Server(("127.0.0.1", port), Handler)
    server.lock, server.buckets, server.uploads, server.requests = threading.RLock(), {bucket: {}}, {}, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
