"""The web page of `pvt-hf app`: its components and events."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.utils import get_upload_folder
from transformers.utils import logging

from ..inference.photographs import PHOTOGRAPHS, photo
from .app_addresses import is_loopback
from .app_answers import (
    STAGES,
    Checkpoint,
    Problem,
    examples,
    lend,
    message,
    open_checkpoint,
    predict,
    read_image,
    stage_updates,
    view_of,
)
from .app_requests import Gate, GuardedBlocks, answer_failure


NO_CHECKPOINT = 'Name a folder or a Hub id and press Load. ("make demo" trains models that this page opens by default.)'
WITH_THRESHOLD = ("object-detection", "instance-segmentation")
DISPLAY: dict[str, Any] = {"interactive": False, "buttons": ["fullscreen"]}
CANNOT_TAKE = (ValueError, RuntimeError, MemoryError)  # raised by processor and model for images they cannot take
THEME = gr.themes.Default(primary_hue="blue").set(  # for contrast
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
    """
    The components of the page and their event handlers. The model is loaded when somebody opens the page.

    Args:
        models: the checkpoints on offer, folders or Hub ids; the first is shown at the start.
        any_model: whether visitors may name other checkpoints, too.
        trust_remote_code: whether code that comes with a checkpoint may run.
    """

    def __init__(self, models: list[str], any_model: bool, trust_remote_code: bool):
        self.models, self.any_model, self.trust_remote_code = models, any_model, trust_remote_code
        with GuardedBlocks(title="Try a PVT", analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            self.loaded = gr.State("")
            gr.Markdown("# Try a Pyramid Vision Transformer")
            with gr.Row():
                with gr.Column(min_width=300):
                    self.add_inputs()
                with gr.Column(min_width=300, scale=2):
                    self.classes = gr.Label(label="Classes", visible=False, elem_id="classes")
                    self.picture = gr.Image(label="Answer", visible=False, alt_text="The answer", **DISPLAY)
                    self.details = gr.HTML(elem_id="details")
            with gr.Column(visible=False) as self.attention:
                self.add_attention()
            self.connect()

    def add_inputs(self) -> None:
        self.name: gr.Textbox | gr.Dropdown
        if self.any_model:
            self.name = gr.Textbox(label="Checkpoint", info="A folder or a Hub id, with safetensors")
        else:
            self.name = gr.Dropdown(self.models, value=self.models[0], label="Checkpoint")
        self.load = gr.Button("Load", variant="primary")
        self.file = gr.File(label="Image", height=160)
        gr.Markdown("Or an example:")
        with gr.Row():
            self.examples = {name: gr.Button(PHOTOGRAPHS[name].shows, size="sm", min_width=80) for name in examples()}
        sources = "; ".join(f"{PHOTOGRAPHS[name].shows}: {PHOTOGRAPHS[name].source}" for name in self.examples)
        gr.Markdown(f"<small>Sources: {sources}.</small>")
        self.threshold = gr.Slider(0.05, 0.95, 0.5, step=0.05, label="Lowest score of an object", visible=False)
        self.status = gr.HTML()

    def add_attention(self) -> None:
        gr.Markdown(
            "## Where a patch looks\n\nClick the picture, or move the sliders, to choose a patch (framed in white). "
            "For each stage, the map shows the attention of that patch in the last block, averaged over the heads: "
            "brighter means more."
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

    def connect(self) -> None:
        """Attaches the event handlers."""
        place = [self.down, self.across]
        inputs = [self.loaded, self.file, self.threshold, *place]
        results = [self.status, self.threshold, self.classes, self.picture, self.details, self.attention,
                   self.source, self.seen, *self.stages]  # fmt: skip
        # "always_last": an event that comes while the previous one is handled waits. (By default it would be dropped.)
        options: dict[str, Any] = {
            "concurrency_id": "model", "api_visibility": "private", "trigger_mode": "always_last"
        }  # fmt: skip
        opening = {"inputs": [self.name, *inputs[1:]], "outputs": [self.name, self.loaded, *results], **options}
        for name, button in self.examples.items():
            button.click(
                partial(self.show_example, photo(name)),
                inputs=[self.loaded, *inputs[2:]], outputs=[self.file, *results], **options,
            )  # fmt: skip
        self.blocks.load(self.start, **opening)
        self.load.click(self.open, **opening)
        (self.name.submit if isinstance(self.name, gr.Textbox) else self.name.input)(self.open, **opening)
        answering = [self.file.upload, self.file.clear, self.threshold.input]
        gr.on(answering, self.answer, inputs=inputs, outputs=results, **options)
        looking = {"show_progress": "hidden", **options}
        self.source.select(self.click, inputs=inputs[:2], outputs=[*place, *self.stages], **looking)
        sliding = [slider.input for slider in place]
        gr.on(sliding, self.look, inputs=[*inputs[:2], *place], outputs=self.stages, **looking)

    def start(self, name: str, *inputs: Any) -> dict:
        return self.open(self.models[0] if self.models else "", *inputs)

    def open(self, name: str, *inputs: Any) -> dict:
        """Loads the checkpoint again even if it is the same: it may have been trained further."""
        name = name.strip()
        open_checkpoint.cache_clear()
        view_of.cache_clear()
        return {self.name: name, self.loaded: name, **self.answer(name, *inputs)}

    def show_example(self, path: str, name: str, *inputs: Any) -> dict:
        path = lend(path)
        return {self.file: path, **self.answer(name, path, *inputs)}

    def answer(self, name: str, path: str | None, threshold: float, down: float, across: float) -> dict:
        """Updates for the status and all results. Results are emptied if something is missing or wrong."""
        updates: dict = {
            component: gr.update(value=None, visible=False) for component in (self.classes, self.picture, *self.stages)
        }
        updates |= {self.threshold: gr.update(), self.details: "", self.source: None, self.seen: ""}
        updates |= {self.attention: gr.update(visible=False), self.status: message(NO_CHECKPOINT)}
        if not name:
            return updates
        try:
            checkpoint = self.checkpoint(name)
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
                results[self.seen] = f"<p>Attention was computed at {width} x {height} pixels.</p>"
            return updates | results
        except (Problem, *CANNOT_TAKE) as error:
            return updates | {self.status: message(f"⚠ {error}")}

    def checkpoint(self, name: str) -> Checkpoint:
        """Opens a checkpoint. Raises a [`Problem`] for one that is not on offer, whether or not it exists."""
        if not self.any_model and name not in self.models:
            raise Problem(f"{name} is not among the checkpoints of this page.")
        return open_checkpoint(name, self.trust_remote_code)

    def look(self, name: str, path: str, down: float, across: float) -> list:
        return stage_updates(view_of(self.checkpoint(name), path), down, across)

    def click(self, name: str, path: str, event: gr.SelectData) -> list:
        width, height = view_of(self.checkpoint(name), path).picture.size
        down, across = 100 * (event.index[1] + 0.5) / height, 100 * (event.index[0] + 0.5) / width
        return [round(down), round(across), *self.look(name, path, down, across)]


@asynccontextmanager
async def remove_uploads(server: FastAPI) -> AsyncIterator[None]:
    """Deletes Gradio's folder when the server ends. (After a signal, uvicorn does not return to its caller.)"""
    yield
    shutil.rmtree(get_upload_folder(), ignore_errors=True)


def serve(arguments: argparse.Namespace) -> None:
    """Serves the page until the process is stopped, as the `arguments` of `pvt-hf app` say."""
    logging.disable_progress_bar()
    host, local = arguments.host, is_loopback(arguments.host)
    os.environ["GRADIO_TEMP_DIR"] = mkdtemp(prefix="pvt-hf-page-")  # Gradio's own is shared with other pages
    page = Page(arguments.model, local, arguments.trust_remote_code)
    # blocks.launch gives up if its own page takes more than three seconds to answer, and can make a public link.
    server = gr.mount_gradio_app(
        FastAPI(openapi_url=None, lifespan=remove_uploads), page.blocks, "/", server_name=host,
        server_port=arguments.port, theme=THEME, css=CSS, footer_links=[], run_history=False, enable_monitoring=False,
        show_error=False, max_file_size="200mb", ssr_mode=False, mcp_server=False,
        app_kwargs={"exception_handlers": {Exception: answer_failure}},
    )  # fmt: skip
    print(f"The page: http://{f'[{host}]' if ':' in host else host}:{arguments.port}", flush=True)
    if not local:
        print(f"Everybody who reaches this address can use: {', '.join(arguments.model)}", flush=True)
    uvicorn.run(Gate(server, local), host=host, port=arguments.port, log_level="warning", timeout_graceful_shutdown=3)
