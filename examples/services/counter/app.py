"""Answers every request with the number of requests so far, which redis keeps."""
import http.server

import redis

cache = redis.Redis(host="cache")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            status, text = 200, f"visitor {cache.incr('visitors')}\n"
        except redis.exceptions.RedisError as error:
            status, text = 503, f"{error}\n"
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
