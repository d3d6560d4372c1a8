"""`pvt-hf app`: a web page to try a model."""

import argparse
import os


DESCRIPTION = """
A web page to try a model: drop an image and see its classes, segmentation or objects, and the attention maps.

    pvt-hf app --model outputs/demo/detector
    pvt-hf app --host 0.0.0.0 --port 8080

Opens classifiers, segmenters and detectors of this package and of Transformers, from a folder or the Hub; without
--model, one that `make demo` has trained. Reads weights from safetensors only. Apart from checkpoints on the Hub, the
page loads nothing from other hosts and sends them nothing. Needs the extras `demo` and, for detectors, `detection`:
`pip install "pvt-hf[demo,detection]"`.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        help="folder written by save_pretrained, or Hub id, e.g. outputs/demo/detector; default: one of `make demo`",
    )
    # The Hub's Spaces set these variables.
    host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("GRADIO_SERVER_PORT", "7860")
    parser.add_argument(
        "--host", default=host,
        help="network address to serve at, e.g. 0.0.0.0 for other machines, too; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=port, help="TCP port, e.g. 8080; default: %(default)s")
    parser.add_argument(
        "--trust_remote_code", action="store_true",
        help="run the code of any checkpoint that a visitor names on the page; default: such checkpoints are refused",
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()

    from .app_page import serve

    serve(arguments)
