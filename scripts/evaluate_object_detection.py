"""
Evaluates any detector that AutoModel opens on any stream of images with objects: COCO's twelve figures, of boxes and,
where the model has them, of masks, the AP of every class, images per second.

    python scripts/evaluate_object_detection.py --model DIR --dataset path/to/coco --split validation
    python scripts/evaluate_object_detection.py --model DIR --dataset ... --output ap.json --results detections.json
    accelerate launch scripts/evaluate_object_detection.py --model DIR --dataset ...                # several GPUs
    torchrun --nproc_per_node 2 scripts/evaluate_object_detection.py --model DIR --dataset ... --cpu

Detections are made and compared at each image's own size; classes by name where the data have names. --results is
COCO's results file, with the category and image ids of the data. Several processes share the samples, each once.
Unusable images are skipped, named and counted. `--help` lists every argument.
"""

from pvt_hf.data.streams import StreamError
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks import get_task


if __name__ == "__main__":
    task = get_task("object-detection")
    try:
        evaluate_checkpoint(task, parse_arguments(task.evaluation_settings))
    except (OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
