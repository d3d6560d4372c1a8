"""`pvt-hf app`: a web page to try a model."""

import argparse
import os
import socket
from pathlib import Path

from ..engine.arguments import ArgumentParser
from ..weights.paths import check_model_path
from .app_addresses import is_loopback


HOST_ERRORS = (socket.gaierror, UnicodeError)
DEMO = [f"outputs/demo/{name}" for name in ("detector", "segmenter", "classifier")]  # written by `make demo`
INCLUDED = ["sample:digits-detector", "sample:digits-segmenter"]  # part of this package
DESCRIPTION = """
A web page to try a model: drop an image and see its classes, segmentation or objects, and the attention maps.

    pvt-hf app --model outputs/demo/detector
    pvt-hf app --model outputs/demo/detector --model outputs/demo/classifier --host 0.0.0.0 --port 8080

Opens classifiers, segmenters and detectors of this package and of Transformers, from a folder or the Hub; without
--model, those that `make demo` has trained or, without them, the samples in this package. Reads weights from
safetensors only. Apart from checkpoints on the Hub, the page loads nothing from other hosts and sends them nothing.
Needs the extras `demo` and, for detectors, `detection`: `pip install "pvt-hf[demo,detection]"`.

Who may use the page:

- Without --host, this machine only. The page listens at 127.0.0.1 and refuses requests that name another host or were
  forwarded from one, as a tunnel or a proxy makes them. On the page, any folder of this machine and any Hub id can be
  opened.
- With --host, everybody who reaches that address. Only the checkpoints of --model can be opened.

Visitors get no file of this machine but those that they upload; these are deleted when the page ends. The page has no
passwords, no encryption, and no limit on the number of requests and uploads. That is right for a network of people who
trust each other. Put a server with passwords and limits, such as nginx, between the page and the internet.
"""


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", action="append",
        help="folder written by save_pretrained, Hub id, official:pvt-small or sample:digits-detector, e.g. "
        "outputs/demo/detector; may be given several times: "
        "the first is opened at the start; default: those of `make demo`, or the samples",
    )  # fmt: skip
    parser.add_argument(
        "--host", default="127.0.0.1",
        help="network address to serve at, e.g. 0.0.0.0 for other machines, too; default: %(default)s",
    )  # fmt: skip
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    parser.add_argument("--port", type=int, default=port, help="TCP port, e.g. 8080; default: %(default)s")
    parser.add_argument(
        "--trust_remote_code", action="store_true",
        help="run the code of any checkpoint that can be opened on the page; default: such checkpoints are refused",
    )  # fmt: skip
    arguments = parser.parse_args()
    arguments.model = arguments.model or [folder for folder in DEMO if Path(folder, "config.json").is_file()]
    if not arguments.model and is_loopback(arguments.host):
        arguments.model = INCLUDED
    if not arguments.model and not is_loopback(arguments.host):
        parser.error(f"a page at --host {arguments.host} offers the checkpoints of --model only: give at least one.")
    if not 1 <= arguments.port <= 65_535:
        parser.error(f"--port must be from 1 to 65535, got {arguments.port}.")
    try:
        address = socket.getaddrinfo(arguments.host.strip("[]"), arguments.port, type=socket.SOCK_STREAM)[0]
        for model in arguments.model:
            check_model_path(model)
    except (OSError, UnicodeError) as error:
        host = f"--host {arguments.host!r} is no address of this machine: " if isinstance(error, HOST_ERRORS) else ""
        parser.error(f"{host}{error}")
    with socket.socket(address[0]) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind(address[4])
        except OSError as error:
            parser.error(
                f"cannot serve at {arguments.host}:{arguments.port} ({error.strerror}): choose another --port."
            )
    return arguments


def main() -> None:
    arguments = parse_arguments()

    from .app_page import serve

    serve(arguments)
