"""Image classification, semantic segmentation and object detection: what the engine needs to know of each."""
