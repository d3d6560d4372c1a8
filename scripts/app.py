"""
A page to try a model: drop an image, see its classes, segmentation or objects, and where its patches look.

    python scripts/app.py [--model outputs/demo/detector] [--host 127.0.0.1] [--port 7860]

Opens a checkpoint of this package, or any other that the pipelines of its task open, from a folder or the Hub: by
default one that `make demo` has left. Only safetensors are read, and code that comes with a checkpoint runs only with
--trust_remote_code. The page needs nothing from other hosts, and tells them nothing.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from app_answers import STAGES, Problem, message, open_checkpoint, predict, read_image, stage_updates, view_of
from fastapi import FastAPI
from transformers.utils import logging


DEMO = [f"outputs/demo/{name}" for name in ("detector", "segmenter", "model")]  # what `make demo` writes
NO_CHECKPOINT = 'Name a folder or a Hub id and press Load. ("make demo" trains models that this page then opens with.)'
WITH_THRESHOLD = ("object-detection", "instance-segmentation")
DISPLAY: dict[str, Any] = {"interactive": False, "buttons": ["fullscreen"]}
CANNOT_TAKE = (ValueError, RuntimeError, MemoryError)  # what processor and model say about images they cannot take
THEME = gr.themes.Default(primary_hue="blue").set(  # with enough contrast
    body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
)  # fmt: skip
CSS = """
:focus-visible { outline: 3px solid #0072B2 !important; outline-offset: 2px; }
#details { overflow-x: auto; }
#details ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; }
#details i { display: inline-block; width: 1em; height: 1em; border: 1px solid; vertical-align: -0.1em; }
#details td, #details th { padding: 0.2rem 0.75rem; text-align: left; }
#status { overflow-wrap: anywhere; font-weight: 600; }
"""


class Page:
    """The components, and what happens to them. Nothing is loaded before somebody opens the page."""

    def __init__(self, model: str | None, trust_remote_code: bool):
        self.model, self.trust_remote_code = model, trust_remote_code
        with gr.Blocks(title="Try a PVT", analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            self.loaded = gr.State("")
            gr.Markdown("# Try a Pyramid Vision Transformer")
            with gr.Row():
                with gr.Column(min_width=300):
                    self.name = gr.Textbox(label="Checkpoint", info="A folder or a Hub id, with safetensors")
                    load = gr.Button("Load", variant="primary")
                    self.file = gr.File(label="Image", height=160)
                    self.threshold = gr.Slider(
                        0.05, 0.95, 0.5, step=0.05, label="Least score of an object", visible=False
                    )
                    self.status = gr.HTML()
                with gr.Column(min_width=300, scale=2):
                    self.classes = gr.Label(label="Classes", visible=False, elem_id="classes")
                    self.picture = gr.Image(label="Answer", visible=False, alt_text="The answer", **DISPLAY)
                    self.details = gr.HTML(elem_id="details")
            with gr.Column(visible=False) as self.attention:
                gr.Markdown(
                    "## Where a patch looks\n\nClick the picture, or move the sliders, to choose a patch (framed in "
                    "white). Each stage shows where its last block looks from there, its heads averaged: the brighter, "
                    "the more."
                )
                with gr.Row():
                    with gr.Column(min_width=300):
                        self.source = gr.Image(label="Choose a patch", alt_text="Your image", **DISPLAY)
                        self.down = gr.Slider(0, 100, 50, step=1, label="Patch: from the top, in %")
                        self.across = gr.Slider(0, 100, 50, step=1, label="Patch: from the left, in %")
                        self.seen = gr.HTML()
                    with gr.Column(min_width=300, scale=2):
                        self.stages = []
                        for first in range(1, STAGES, 2):
                            with gr.Row():
                                for number in (first, first + 1):
                                    alt_text = f"Attention of stage {number}"
                                    self.stages.append(gr.Image(min_width=220, alt_text=alt_text, **DISPLAY))
            place = [self.down, self.across]
            inputs = [self.loaded, self.file, self.threshold, *place]
            results = [self.status, self.threshold, self.classes, self.picture, self.details, self.attention,
                       self.source, self.seen, *self.stages]  # fmt: skip
            options: dict[str, Any] = {"concurrency_id": "model", "api_visibility": "private"}
            opening = {**options, "trigger_mode": "always_last"}
            opening |= {"inputs": [self.name, *inputs[1:]], "outputs": [self.name, self.loaded, *results]}
            self.blocks.load(self.start, **opening)
            load.click(self.open, **opening)
            self.name.submit(self.open, **opening)
            # What comes while an answer is made is answered after it. (By default it would be dropped.)
            answering = {**options, "trigger_mode": "always_last", "inputs": inputs, "outputs": results}
            gr.on([self.file.upload, self.file.clear, self.threshold.input], self.answer, **answering)
            looking = {**options, "show_progress": "hidden", "trigger_mode": "always_last"}
            self.source.select(self.click, inputs=inputs[:2], outputs=[*place, *self.stages], **looking)
            gr.on(
                [slider.input for slider in place], self.look, inputs=[*inputs[:2], *place], outputs=self.stages,
                **looking,
            )  # fmt: skip

    def start(self, name: str, *inputs: Any) -> dict:
        found = (folder for folder in DEMO if Path(folder, "config.json").is_file())
        return self.open(self.model or next(found, ""), *inputs)

    def open(self, name: str, *inputs: Any) -> dict:
        """Anew: it may have been trained meanwhile."""
        name = name.strip()
        open_checkpoint.cache_clear()
        view_of.cache_clear()
        return {self.name: name, self.loaded: name, **self.answer(name, *inputs)}

    def answer(self, name: str, path: str | None, threshold: float, down: float, across: float) -> dict:
        """Updates of the status and all results, of which there are none where something is missing or wrong."""
        updates: dict = {
            component: gr.update(value=None, visible=False) for component in (self.classes, self.picture, *self.stages)
        }
        updates |= {self.threshold: gr.update(), self.details: "", self.source: None, self.seen: ""}
        updates |= {self.attention: gr.update(visible=False), self.status: message(NO_CHECKPOINT)}
        if not name:
            return updates
        try:
            checkpoint = open_checkpoint(name, self.trust_remote_code)
            updates[self.threshold] = gr.update(visible=checkpoint.task in WITH_THRESHOLD)
            if path is None:
                kinds = f"{len(checkpoint.id2label)} classes"
                updates[self.status] = message(f"Loaded {name}: {checkpoint.task}, {kinds}. Now drop an image.")
                return updates
            image = read_image(path)
            text, confidences, picture, html = predict(checkpoint, image, threshold)
            results: dict = {
                self.status: message(f"{Path(path).name}: {text}"),
                self.classes: gr.update(value=confidences, visible=confidences is not None),
                self.picture: gr.update(value=picture, visible=picture is not None),
                self.details: html,
            }
            if checkpoint.pvt is not None:
                view = view_of(checkpoint, path)
                results |= {self.attention: gr.update(visible=True), self.source: view.picture}
                results |= dict(zip(self.stages, stage_updates(view, down, across)))
                height, width = view.size
                results[self.seen] = f"<p>For this view the model saw the image at {width} x {height} pixels.</p>"
            return updates | results
        except (Problem, *CANNOT_TAKE) as error:
            return updates | {self.status: message(f"⚠ {error}")}

    def look(self, name: str, path: str, down: float, across: float) -> list:
        return stage_updates(view_of(open_checkpoint(name, self.trust_remote_code), path), down, across)

    def click(self, name: str, path: str, event: gr.SelectData) -> list:
        width, height = view_of(open_checkpoint(name, self.trust_remote_code), path).picture.size
        down, across = 100 * (event.index[1] + 0.5) / height, 100 * (event.index[0] + 0.5) / width
        return [round(down), round(across), *self.look(name, path, down, across)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model", help="folder or Hub id to open with; default: a checkpoint of `make demo`")
    # The Hub's Spaces set these variables.
    host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("GRADIO_SERVER_PORT", "7860")
    parser.add_argument("--host", default=host, help="address to serve at; default: %(default)s")
    parser.add_argument("--port", type=int, default=port, help="default: %(default)s")
    parser.add_argument(
        "--trust_remote_code", action="store_true",
        help="run the code that a checkpoint brings along, of any that somebody names on the page",
    )  # fmt: skip
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    blocks = Page(arguments.model, arguments.trust_remote_code).blocks
    # Not blocks.launch, which gives up where its own page takes more than three seconds, and can make a public link.
    server = gr.mount_gradio_app(
        FastAPI(openapi_url=None), blocks, "/", server_name=arguments.host, server_port=arguments.port, theme=THEME,
        css=CSS, footer_links=[], run_history=False, enable_monitoring=False, show_error=False, max_file_size="200mb",
    )  # fmt: skip
    print(f"The page: http://{arguments.host}:{arguments.port}", flush=True)
    uvicorn.run(server, host=arguments.host, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
