"""
Losses of DETR on two processes, each with one image of a batch, for tests/models/test_modeling_pvt_detr.py.

    torchrun --nproc_per_node 2 -m tests.support.detr_processes OUTPUT
"""

import json
import sys
from pathlib import Path

import torch

from pvt_hf.engine.processes import make_accelerator

from .common import random_images
from .heads import boxes_only, random_objects, tiny_head
from .many_processes import settings_of


def batch_of_three() -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Images of five, one and one object."""
    labels = [random_objects(1, 96, 128, seed=seed, count=count)[0] for seed, count in enumerate((5, 1, 1))]
    return random_images(3, 96, 128), boxes_only(labels)


if __name__ == "__main__":
    output = Path(sys.argv[1])
    accelerator = make_accelerator(settings_of(output))
    model, (images, labels) = tiny_head("detr"), batch_of_three()
    rank = accelerator.process_index
    losses = {}
    for name, of_ranks in {"uneven": ([0], [1]), "few": ([1], [2])}.items():
        mine = of_ranks[rank]
        with torch.no_grad():
            outputs = model(images[mine], labels=[labels[index] for index in mine])
        losses[name] = {"loss": outputs.loss.item(), **{key: value.item() for key, value in outputs.loss_dict.items()}}
    (output / f"rank{rank}.json").write_text(json.dumps(losses))
