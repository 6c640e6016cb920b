"""Deploy and serve: export a model to one file, open that in its runtime, and answer HTTP requests with its classes.

    python examples/serve.py runs/photos photos.onnx --port 8000
    curl --data-binary @photo.jpg localhost:8000

The file knows its class names and preprocessing, so the server needs nothing else: neither the run nor PyTorch's model.
It is the standard library's server, to show the calls; behind a door of your own, any other does the same.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import visionmlp
from visionmlp.deploy.export import export_model
from visionmlp.deploy.runtimes import open_session
from visionmlp.deploy.session import SessionModel
from visionmlp.tasks.classify.predict import Prediction, predict

LARGEST = 32 * 1024 * 1024
"""Bytes of a request that are read."""


def deploy(model: str, file: Path) -> None:
    """Write the deploy form of a run folder, checkpoint or model name; compared with PyTorch before it appears."""
    loaded, info = visionmlp.load_model(model)
    report = export_model(loaded, info, file)
    print(f"{file}: " + ", ".join(f"batch {check.batch}: error {check.error:.1e}" for check in report.checks))


def build_server(file: Path, *, host: str, port: int, top_k: int = 3) -> ThreadingHTTPServer:
    """A server that answers a POST of an image file with its classes, as JSON.

    Args:
        file: from `deploy`.
        host: address to listen at.
        port: 0 takes a free one, which is then the server's ``server_port``.
        top_k: classes of an answer.
    """
    session = open_session(file, threads=1)
    model, info = SessionModel(session), session.metadata.info(str(file))

    def classes_of(data: bytes) -> Prediction:
        with tempfile.NamedTemporaryFile() as image:
            image.write(data)
            image.flush()
            (prediction,) = predict(model, info, [image.name], top_k=top_k)
        return prediction

    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def do_POST(self) -> None:
            """Classes of the image in the body."""
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 < length <= LARGEST:
                self.answer(413, {"error": f"send an image of 1 to {LARGEST} bytes"})
                return
            prediction = classes_of(self.rfile.read(length))
            if prediction.error:
                self.answer(400, {"error": prediction.error})
            else:
                self.answer(200, {"classes": [dataclasses.asdict(score) for score in prediction.classes]})

        def answer(self, status: int, content: dict[str, object]) -> None:
            """Send JSON."""
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer((host, port), Handler)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, checkpoint or model name")
    parser.add_argument("file", type=Path, help="exported file, written if it does not exist: .onnx, .xml or .pt2")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(arguments)
    if not options.file.exists():
        deploy(options.model, options.file)
    with build_server(options.file, host=options.host, port=options.port) as server:
        print(f"listening at port {server.server_port}; Ctrl-C ends")
        server.serve_forever()


if __name__ == "__main__":
    main()
