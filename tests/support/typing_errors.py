"""
Wrong uses, and the error that mypy has to find in each line (tests/package/test_typing.py). Nobody runs it.
"""

import torch

from pvt_hf import (
    PvtConfig,
    PvtForImageClassification,
    PvtImageProcessor,
    PvtImageProcessorPil,
    PvtInstanceImageProcessor,
    PvtSemanticImageProcessorPil,
    RetinaNetConfig,
    SemanticFpnConfig,
    load_official_checkpoint,
    load_pretrained_backbone,
)
from pvt_hf.weights.variants import get_config, get_variant


PvtConfig(image_size="large")  # error: [arg-type]
PvtConfig(depth=[2, 2, 2, 2])  # error: [call-arg]
PvtConfig(out_features="stage4")  # error: [arg-type]
SemanticFpnConfig(fpn_channels="256")  # error: [arg-type]
RetinaNetConfig(num_labels="80")  # error: [arg-type]
PvtConfig().grid_sizes(224)  # error: [call-arg]
get_config(3)  # error: [arg-type]
get_variant("pvt-small").paper_gflops + 1  # error: [operator]
load_official_checkpoint(3)  # error: [arg-type]
load_official_checkpoint("pvt_small.pth").num_classes()  # error: [operator]
load_pretrained_backbone("model", "pvt_small.pth")  # error: [arg-type]
loaded = load_pretrained_backbone(PvtForImageClassification(PvtConfig())).loaded  # error: [call-arg]
lost = load_pretrained_backbone(PvtForImageClassification(PvtConfig()), "pvt_small.pth").lost  # error: [attr-defined]
PvtForImageClassification("pvt-small")  # error: [arg-type]
process = PvtImageProcessor.from_pretrained("pvt-small").post_process_semantic_segmentation  # error: [attr-defined]
PvtImageProcessorPil(do_reduce_labels=True)  # error: [call-arg]
PvtSemanticImageProcessorPil(do_reduce_labels="yes")  # error: [arg-type]
PvtInstanceImageProcessor(nms_threshold=0.5)  # error: [call-arg]
PvtInstanceImageProcessor()("photo.jpg", annotations=[], size_divisor=0.5)  # error: [arg-type]
torch.relu(PvtForImageClassification.from_pretrained("pvt-small"))  # error: [arg-type]
