"""
What every process of the two-process tests in `tests/scripts/test_finetune.py` runs: `pvt-hf finetune`, several
times, with a record of the batches as Trainer's steps get them.

    torchrun --standalone --nproc_per_node 2 -m tests.support.finetune_processes RUNS.json OUTPUT

RUNS.json has the arguments of each run by name. Writes `OUTPUT/rank<r>.json`: `metrics` or `error`, and `batches`.
"""

import json
import os
import sys
from pathlib import Path

from accelerate import Accelerator

from pvt_hf.commands.finetune import parse_arguments
from pvt_hf.data.streams import StreamError
from pvt_hf.engine import finetuning


class RecordingTrainer(finetuning.StreamTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        labels = inputs["labels"]
        objects = [len(label["boxes"]) for label in labels] if isinstance(labels, list) else None
        BATCHES.append({"names": inputs["sample_ids"], "images": len(inputs["pixel_values"]), "objects": objects})
        return super().training_step(model, inputs, *args, **kwargs)


BATCHES: list[dict] = []
finetuning.StreamTrainer = RecordingTrainer
end_training = Accelerator.end_training
Accelerator.end_training = lambda self: None  # it ends the process group, which the next run needs


def run(arguments: list[str]) -> dict:
    BATCHES.clear()
    given = parse_arguments(arguments[0], arguments[1:])
    try:
        result = {"metrics": finetuning.finetune(*given)}
    except StreamError as error:
        result = {"error": str(error)}
    return {**result, "batches": list(BATCHES), "world_size": given[-1].world_size}


if __name__ == "__main__":
    runs, output = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    results = {name: run(arguments) for name, arguments in runs.items()}
    (output / f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
    end_training(Accelerator(cpu=True))
