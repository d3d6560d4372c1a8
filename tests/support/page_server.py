"""The page of `scripts/app.py` in a process of its own, and a client that speaks to it as a browser does."""

import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from .clean_process import REPOSITORY


SCRIPT = REPOSITORY / "scripts" / "app.py"


@contextmanager
def run_page(folder: Path, *arguments: object, launcher: tuple = (), **environment: str) -> Iterator[tuple[str, Path]]:
    """
    Serves the page at a free port, with `folder` as working directory.

    Args:
        arguments: of the script.
        launcher: arguments of Python before the script's name.
        environment: variables to add.

    Yields:
        Its address on this machine, and the file that its output goes to.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for name in ("HF_HUB_OFFLINE", "GRADIO_ANALYTICS_ENABLED", "GRADIO_SERVER_NAME", "HF_TOKEN"):
        variables.pop(name, None)
    log = folder / f"page-{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", *map(str, (*launcher, SCRIPT, *arguments)), "--port", str(port)],
            env={**variables, **environment}, cwd=folder, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        while True:
            assert process.poll() is None, log.read_text()
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", port)) == 0:
                    break
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                pass
        yield f"http://127.0.0.1:{port}", log
    finally:
        process.terminate()
        process.wait()


def file_data(path: Any, **fields: Any) -> dict[str, Any]:
    """A file, as Gradio's events name it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **fields}


class PageClient:
    """
    One visitor.

    Attributes:
        http: the HTTP client.
        session: what Gradio knows the visitor by.
        events: numbers of the events, by what triggers them: "load", "upload", "select", "input", "click" ...
    """

    def __init__(self, url: str):
        self.http = httpx.Client(base_url=url, timeout=120)
        self.session = uuid.uuid4().hex
        self.config = self.http.get("/config").json()
        self.events = {trigger: one["id"] for one in self.config["dependencies"] for _, trigger in one["targets"]}

    def upload(self, name: str, content: bytes) -> str:
        """Uploads a file; its path on the server."""
        (path,) = self.http.post("/gradio_api/upload", files={"files": (name, content)}).raise_for_status().json()
        return path

    def send(self, trigger: str, data: list[Any], **fields: Any) -> dict[str, Any]:
        """Triggers an event, and waits for the page's answer."""
        body = {"fn_index": self.events[trigger], "data": data, "session_hash": self.session, **fields}
        self.http.post("/gradio_api/queue/join", json=body).raise_for_status()
        parameters = {"session_hash": self.session}
        with self.http.stream("GET", "/gradio_api/queue/data", params=parameters) as answers:
            for line in answers.iter_lines():
                answer = json.loads(line.removeprefix("data:")) if line else {}
                if answer.get("msg") == "process_completed":
                    return answer
        raise AssertionError("the page did not answer")

    def open(self, model: str) -> str:
        """Names a checkpoint; the page's answer."""
        return answer_text(self.send("click", [model, None, 0.5, 50, 50]))

    def show(self, file: Any) -> str:
        """Gives a file to the model that is loaded; the page's answer."""
        return answer_text(self.send("upload", [None, file, 0.5, 50, 50]))


def answer_text(answer: dict[str, Any]) -> str:
    """The status line of the page, or the error."""
    if not answer["success"]:
        return answer["output"]["error"]
    texts = [one for one in answer["output"]["data"] if isinstance(one, str) and 'role="status"' in one]
    return texts[0].partition(">")[2].removesuffix("</p>")
