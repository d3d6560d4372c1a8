"""
Evaluates a detector, of any architecture that AutoModelForObjectDetection opens: COCO's twelve metrics for boxes, and
for masks if the model predicts them; the AP of every class; images per second.

    python scripts/evaluate_object_detection.py --model DIR --dataset path/to/coco --split validation
    python scripts/evaluate_object_detection.py --model DIR --dataset ... --output ap.json --results detections.json
    accelerate launch scripts/evaluate_object_detection.py --model DIR --dataset ...                # several GPUs
    torchrun --nproc_per_node 2 scripts/evaluate_object_detection.py --model DIR --dataset ... --cpu

Detections are compared with the annotations at each image's own size. Classes are matched by name if the data have
names. --results writes COCO's results file, with the category and image ids of the data. Several processes share the
images; each image counts once. Images per second are measured over all processes, including loading, without the first
batch. Unusable images are skipped, named and counted.
"""

from pvt_hf.data.streams import StreamError
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks import get_task


if __name__ == "__main__":
    task = get_task("object-detection")
    try:
        evaluate_checkpoint(task, parse_arguments(task.evaluation_settings, description=__doc__))
    except (OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
