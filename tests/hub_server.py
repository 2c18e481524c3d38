"""A loopback Hugging Face hub for the unmodified `datasets` client: it publishes one dataset, or fails as hubs do."""

import contextlib
import json
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd

SHA = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def serve(name, splits, fault=None):
    """Yields the server: .url and .asked, the paths that were asked for.

    splits: {split: {column: values}}; fault(path) -> None, or (status, content type, body), or seconds to hang.
    """
    files = {f"data/{split}-00000-of-00001.parquet": pd.DataFrame(c).to_parquet() for split, c in splits.items()}
    page, tree = f"/api/datasets/{name}", [{"type": "directory", "oid": SHA, "size": 0, "path": "data"}]
    about = {"id": name, "sha": SHA, "siblings": [{"rfilename": path} for path in files]}
    answers = {page: about, f"{page}/revision/{SHA}": about, f"{page}/tree/{SHA}": tree}
    answers[f"{page}/tree/{SHA}/data"] = [tree[0] | dict(type="file", size=len(b), path=p) for p, b in files.items()]
    answers = {path: (200, "application/json", json.dumps(found).encode()) for path, found in answers.items()}
    for path, body in files.items():
        answers[f"/datasets/{name}/resolve/{SHA}/{path}"] = 200, "application/octet-stream", body

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            path = self.path.partition("?")[0]
            server.asked.append(path)
            failed = fault and fault(path)
            time.sleep(failed if failed and not isinstance(failed, tuple) else 0)
            known = answers.get(path, (404, "application/json", b'{"error": "not found"}'))
            status, kind, body = failed if isinstance(failed, tuple) else known
            headers = {"Content-Type": kind, "Content-Length": len(body), "ETag": f'"{zlib.crc32(path.encode()):x}"'}
            headers |= {"X-Error-Code": "EntryNotFound"} if status == 404 else {"X-Repo-Commit": SHA}
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.url = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
