"""The official release on a local server, and weights in its layout."""

import dataclasses
import http.server
import threading
import time

import pytest
import safetensors.torch
import torch

from pvt_hf.weights.variants import VARIANTS, get_variant

from ..support.golden import GOLDEN_OUTPUTS, GOLDEN_WEIGHTS


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Inputs and outputs of the official code."""
    return safetensors.torch.load_file(GOLDEN_OUTPUTS)


@pytest.fixture(scope="session")
def golden_weights() -> dict[str, torch.Tensor]:
    """A classifier's state dict in the official layout."""
    return torch.load(GOLDEN_WEIGHTS, weights_only=True)


GOLDEN_FIELDS = {"depths": [1, 2, 2, 1], "hidden_sizes": [16, 32, 80, 128]}


class Handler(http.server.BaseHTTPRequestHandler):
    """/good serves the file, after a redirect as the release does; the other paths misbehave."""

    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path.startswith("/missing"):
            return self.send_error(404)
        if self.path.startswith("/good"):
            self.send_response(302)
            self.send_header("Location", "/moved/pvt_tiny.pth")
            return self.end_headers()
        body = b"<html>Please log in</html>" if self.path.startswith("/login") else self.server.body
        self.send_response(200)
        if self.path.startswith("/slow"):
            time.sleep(0.5)  # the other process comes meanwhile
        if not self.path.startswith("/unannounced"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path.startswith("/silent"):
            self.server.released.wait(60)
            return
        self.wfile.write(body[: len(body) // 2] if self.path.startswith(("/truncated", "/unannounced")) else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(monkeypatch):
    """
    Makes the variant pvt-tiny one whose checkpoint is at a path of a local server, which has the golden file unless a
    test gives another `body`. Gives the list of requests.
    """
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # as the test session sets it
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.released = [], threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def set_variant(path, body=None, **changes):
        server.body = GOLDEN_WEIGHTS.read_bytes() if body is None else body
        url = f"http://127.0.0.1:{server.server_port}{path}/pvt_tiny.pth"
        changes = {"config": GOLDEN_FIELDS, "checkpoint_url": url, **changes}
        monkeypatch.setitem(VARIANTS, "pvt-tiny", dataclasses.replace(get_variant("pvt-tiny"), **changes))
        return server.requests

    yield set_variant
    server.released.set()
    server.shutdown()
    server.server_close()
