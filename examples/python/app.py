"""Answers every request with its path; `--check` asks itself, `--once` answers one request."""
import http.server
import sys
import urllib.request


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"you asked for {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if "--check" in sys.argv:
    urllib.request.urlopen("http://127.0.0.1:8080/", timeout=2)
elif "--version" in sys.argv:
    print("python service")
else:
    http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
