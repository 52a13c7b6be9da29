"""An HTTP endpoint that runs jobs, with Python's standard library only: returns its input, a text, in capitals, word by word.

    python3 examples/endpoint.py 8000 &
    tailwater worker --kind capitals http --url http://127.0.0.1:8000/run &
    tailwater submit --kind capitals --input '"any text"' --watch

Any web framework does as well: answer a POST request with a stream of text, NDJSON or server-sent events.
"""

import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def run(text):
    for word in text.split():
        time.sleep(0.05)
        yield word.upper() + " "


class Endpoint(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # An answer in chunks has a visible end, so that a cut one is noticed.

    def do_POST(self):
        job = self.headers["tailwater-job"]
        value = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for text in run(value):
                self.send({"text": text})
        except OSError:  # Cancelled, or out of time: Tailwater has closed the connection.
            self.close_connection = True
            return print("stopped", job, flush=True)
        except Exception as error:
            self.send({"error": f"{type(error).__name__}: {error}"})
        self.wfile.write(b"0\r\n\r\n")

    def send(self, value):
        line = json.dumps(value).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Endpoint)
    print("serves", server.server_port, flush=True)
    server.serve_forever()
