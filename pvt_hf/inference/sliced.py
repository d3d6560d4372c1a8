"""Detectors for SAHI (`pip install sahi`), which finds small objects by detecting in overlapping slices of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from sahi.models.base import DetectionModel
from sahi.prediction import ObjectPrediction
from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list

from .prediction import find_objects_in, open_pipeline


class SlicedDetector(DetectionModel):
    """
    Any detector of `pvt-hf predict` as a model of SAHI, for `get_prediction` and `get_sliced_prediction`. Gives boxes,
    not masks. (SAHI's own class for Transformers reads DETR's outputs only.)

    Args:
        model_path: folder or Hub id of a detector.
        options: of SAHI's `DetectionModel`, such as `confidence_threshold` (default: 0.3) and `device`.
    """

    def __init__(self, model_path: str, **options: Any):
        self.names: dict[int, str] = {}
        super().__init__(model_path, **options)

    def load_model(self) -> None:
        _, self.model = open_pipeline(str(self.model_path), "object-detection", device=str(self.device))
        self.category_mapping = self.names = dict(self.model.model.config.id2label)

    def perform_inference(self, image: np.ndarray | list[np.ndarray]) -> None:
        """`image` is one or several (height, width, 3) uint8 RGB arrays."""
        images = [Image.fromarray(one) for one in (image if isinstance(image, list) else [image])]
        self._original_predictions = find_objects_in(self.model, images, self.confidence_threshold)

    def perform_batch_inference(self, images: list[np.ndarray]) -> None:
        self.perform_inference(images)

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = ((0, 0),), full_shape_list: Any = None
    ) -> None:
        """SAHI calls this after [`perform_inference`], with (x, y) and (height, width) of each slice's place."""
        shifts, shapes = fix_shift_amount_list(shift_amount_list), fix_full_shape_list(full_shape_list)
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=box, category_id=label, category_name=self.names[label], score=score,
                    shift_amount=[int(side) for side in shifts[index]],
                    full_shape=None if shapes is None else [int(side) for side in shapes[index]],
                )
                for box, label, score in zip(found.boxes_xyxy.tolist(), found.labels, found.scores)
                if box[0] < box[2] and box[1] < box[3]
            ]
            for index, found in enumerate(self._original_predictions)
        ]  # fmt: skip
