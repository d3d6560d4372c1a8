"""
`PvtBackbone` works inside the dense-prediction models of Transformers, and `load_pretrained_backbone` fills it.

Each model runs forward and backward on non-square images, is saved, and computes the same bits when reloaded. Loading
is compared tensor by tensor with the checkpoint, position tables with a resize written here, and the official file
with feature maps that the official code computed.

    python -m pytest tests/models/test_backbone_interoperability.py
"""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    DetrConfig,
    DetrForObjectDetection,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    ResNetBackbone,
    ResNetConfig,
    ResNetForImageClassification,
    SwinBackbone,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.models.pvt import modeling_pvt as native

from pvt_hf import (
    BackboneLoadReport,
    PvtBackbone,
    PvtForImageClassification,
    SemanticFpnConfig,
    SemanticFpnForSemanticSegmentation,
    load_official_checkpoint,
    load_pretrained_backbone,
)

from ..support.clean_process import run_python, without_progress_bars
from ..support.common import TINY, random_images, randomize, tiny_pvt_config
from ..support.frameworks import make_mask2former


GOLDEN = Path(__file__).parents[1] / "golden"
STAGES = ["stage1", "stage2", "stage3", "stage4"]
TINY_DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 5,
}


def make_detr(**overrides) -> DetrForObjectDetection:
    backbone = tiny_pvt_config(**{"out_features": ["stage4"], **overrides})
    flags = {"use_timm_backbone": False, "use_pretrained_backbone": False}
    return DetrForObjectDetection(DetrConfig(backbone_config=backbone, num_labels=3, **flags, **TINY_DETR))


def make_upernet(**overrides) -> UperNetForSemanticSegmentation:
    backbone = tiny_pvt_config(**{"out_features": STAGES, **overrides})
    sizes = {"hidden_size": 32, "auxiliary_in_channels": 80, "auxiliary_channels": 16, "num_labels": 4}
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **sizes))


def make_maskformer(**overrides) -> MaskFormerForInstanceSegmentation:
    backbone = tiny_pvt_config(**{"out_features": STAGES, **overrides})
    decoder = DetrConfig(backbone_config=ResNetConfig(), **TINY_DETR)  # its transformer only
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": 3}
    return MaskFormerForInstanceSegmentation(
        MaskFormerConfig(backbone_config=backbone, decoder_config=decoder, **sizes)
    )


def detr_labels(batch, height, width):
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.6, 0.1, 0.2]])
    return {"labels": [{"class_labels": torch.tensor([1, 2]), "boxes": boxes}] * batch}


def semantic_labels(batch, height, width):
    return {"labels": torch.arange(batch * height * width).reshape(batch, height, width) // 7 % 4}


def mask_labels(batch, height, width):
    masks = torch.zeros(2, height, width)
    masks[0, :30, :40] = masks[1, 30:, 20:] = 1
    return {"mask_labels": [masks] * batch, "class_labels": [torch.tensor([0, 2])] * batch}


MODELS = {
    "detr": (make_detr, AutoModelForObjectDetection, detr_labels, ["logits", "pred_boxes"]),
    "upernet": (make_upernet, AutoModelForSemanticSegmentation, semantic_labels, ["logits"]),
    "maskformer": (
        make_maskformer,
        AutoModelForInstanceSegmentation,
        mask_labels,
        ["class_queries_logits", "masks_queries_logits"],
    ),
    "mask2former": (
        make_mask2former,
        AutoModelForUniversalSegmentation,
        mask_labels,
        ["class_queries_logits", "masks_queries_logits"],
    ),
}


def backbone_of(model: nn.Module) -> PvtBackbone:
    backbones = [module for module in model.modules() if isinstance(module, PvtBackbone)]
    assert len(backbones) == 1
    return backbones[0]


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    """With random weights everywhere: an initial zero could hide a fault."""
    torch.manual_seed(0)
    return randomize(MODELS[name][0]())


def test_every_parameter_of_the_backbone_is_trained(name, model):
    model.train()
    torch.manual_seed(0)
    outputs = model(random_images(2, 64, 96), **MODELS[name][2](2, 64, 96))
    assert torch.isfinite(outputs.loss)
    outputs.loss.backward()
    for parameter_name, parameter in backbone_of(model).named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
    assert backbone_of(model).encoder.patch_embeddings[0].projection.weight.grad.abs().max() > 0


def test_reload_gives_the_same_bits(name, model, tmp_path):
    _, auto_class, _, keys = MODELS[name]
    model.eval().save_pretrained(tmp_path)
    for loading_class in (type(model), auto_class):
        reloaded, info = loading_class.from_pretrained(tmp_path, output_loading_info=True)
        assert type(reloaded) is type(model)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        assert type(backbone_of(reloaded)) is PvtBackbone
        config = backbone_of(reloaded).config
        assert {**config.to_dict(), "dtype": None} == {**backbone_of(model).config.to_dict(), "dtype": None}
        # (75, 110) does not divide by 32: every grid is rounded down
        for height, width in ((64, 96), (96, 64), (75, 110)):
            images = random_images(2, height, width)
            with torch.no_grad():
                expected, actual = model(images), reloaded.eval()(images)
            for key in keys:
                assert torch.equal(actual[key], expected[key]), key
                assert torch.isfinite(actual[key]).all()


def test_the_answer_depends_on_the_backbone(name, model):
    """Otherwise the test above would prove nothing."""
    key, images = MODELS[name][3][-1], random_images(1, 64, 96)
    with torch.no_grad():
        before = model.eval()(images)[key]
        randomize(backbone_of(model), seed=1)
        assert (model(images)[key] - before).abs().max() > 1e-3


# load_pretrained_backbone


CLASSIFIER_PARTS = {
    "classifier.weight",
    "classifier.bias",
    "encoder.layer_norm.weight",
    "encoder.layer_norm.bias",
    "encoder.patch_embeddings.3.cls_token",
}
TABLES = [f"encoder.patch_embeddings.{stage}.position_embeddings" for stage in range(4)]


@pytest.fixture(scope="module")
def classifier():
    return randomize(PvtForImageClassification(tiny_pvt_config()), seed=3)


@pytest.fixture(scope="module")
def folder(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier")
    classifier.save_pretrained(path)
    return path


def make_backbone(**overrides) -> PvtBackbone:
    return PvtBackbone(tiny_pvt_config(**{"out_features": STAGES, **overrides}))


def assert_holds(backbone: nn.Module, source: nn.Module, but=()) -> None:
    """Every tensor of `backbone`, except those in `but`, equals that of `source`."""
    for key, tensor in backbone.state_dict().items():
        if key not in but:
            assert torch.equal(tensor, source.state_dict()[key]), key


@pytest.mark.parametrize("make", [make_backbone, make_detr, make_upernet, make_maskformer, make_mask2former])
def test_loads_into_the_backbone_of_any_model(make, classifier, folder):
    model = make()
    before = copy.deepcopy(model.state_dict())
    report = load_pretrained_backbone(model, folder)
    assert isinstance(report, BackboneLoadReport)
    backbone = backbone_of(model)
    assert_holds(backbone, classifier.pvt)
    assert set(report.loaded) == backbone.state_dict().keys()
    assert report.resized == [] and report.missing == []
    assert set(report.unused) == CLASSIFIER_PARTS
    # nothing else in the model is touched
    pointers = {tensor.data_ptr() for tensor in backbone.state_dict().values()}
    for key, tensor in model.state_dict().items():
        if tensor.data_ptr() not in pointers:
            assert torch.equal(tensor, before[key]), key


def test_the_loaded_backbone_computes_the_classifiers_first_stages(classifier, folder):
    """Stages 1 to 3 are the same in both. In stage 4 the classifier has a cls token."""
    backbone, images = make_backbone().eval(), random_images(2, 64, 96)
    load_pretrained_backbone(backbone, folder)
    with torch.no_grad():
        states = classifier.eval()(images, output_hidden_states=True).hidden_states
        maps = backbone(images).feature_maps
    for index, feature_map in zip((0, 2, 3), maps):  # depths are 1, 2, 1
        torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), states[index], atol=0, rtol=0)


@pytest.mark.parametrize("image_size", [96, 32, (64, 96), (65, 130)])
def test_position_tables_are_resized_for_another_construction_size(image_size, classifier, folder):
    backbone = make_backbone(image_size=image_size)
    report = load_pretrained_backbone(backbone, folder)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for stage, name in enumerate(TABLES):
        stride, side = 4 * 2**stage, 16 // 2**stage
        table = classifier.pvt.state_dict()[name][0]  # (rows * columns [+ 1], channels) for 64x64
        prefix, patches = (table[:1], table[1:]) if stage == 3 else (table[:0], table)
        patches = patches.T.reshape(1, -1, side, side)
        size = (height // stride, width // stride)
        resized = nn.functional.interpolate(patches, size=size, mode="bilinear", align_corners=False)
        expected = torch.cat([prefix, resized[0].flatten(1).T])
        assert torch.equal(backbone.state_dict()[name][0], expected)
    assert report.resized == TABLES
    assert set(report.loaded) == backbone.state_dict().keys() - set(TABLES)
    assert set(report.unused) == CLASSIFIER_PARTS and report.missing == []
    assert_holds(backbone, classifier.pvt, but=TABLES)


def test_only_tables_with_another_grid_are_resized(folder):
    """66 pixels round down to the same grids as 64."""
    report = load_pretrained_backbone(make_backbone(image_size=(66, 67)), folder)
    assert report.resized == [] and set(TABLES) <= set(report.loaded)


def test_other_precisions(classifier, folder, tmp_path):
    backbone = make_backbone().to(torch.bfloat16)
    load_pretrained_backbone(backbone, folder)
    assert backbone.dtype == torch.bfloat16
    assert_holds(backbone, copy.deepcopy(classifier.pvt).to(torch.bfloat16))

    half = copy.deepcopy(classifier).to(torch.float16)
    half.save_pretrained(tmp_path)
    backbone = make_backbone()
    load_pretrained_backbone(backbone, tmp_path)
    assert backbone.dtype == torch.float32
    assert_holds(backbone, half.pvt.float())


def test_native_checkpoint(tmp_path):
    source = randomize(native.PvtForImageClassification(native.PvtConfig(**TINY, num_labels=5)), seed=4)
    source.save_pretrained(tmp_path)
    for model in (make_backbone(), make_detr()):
        report = load_pretrained_backbone(model, tmp_path)
        assert_holds(backbone_of(model), source.pvt)
        assert set(report.unused) == CLASSIFIER_PARTS and report.missing == []


def test_sharded_checkpoint(classifier, tmp_path):
    classifier.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    backbone = make_backbone()
    report = load_pretrained_backbone(backbone, tmp_path)
    assert_holds(backbone, classifier.pvt)
    assert set(report.unused) == CLASSIFIER_PARTS


def test_official_checkpoint():
    """The golden feature maps come from the official detection code with these weights."""
    file = GOLDEN / "official_layout_tiny.pth"
    config = load_official_checkpoint(file).config
    config.out_features = STAGES
    model = UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=config, hidden_size=32, auxiliary_in_channels=80, auxiliary_channels=16)
    )
    report = load_pretrained_backbone(model, file)
    backbone = backbone_of(model).eval()
    assert set(report.loaded) == backbone.state_dict().keys()
    assert set(report.unused) == CLASSIFIER_PARTS and report.resized == report.missing == []
    golden = load_file(GOLDEN / "official_layout_tiny_expected.safetensors")
    for size in ("64x64", "72x100", "128x96"):
        with torch.no_grad():
            maps = backbone(golden[f"{size}.pixel_values"]).feature_maps
        for stage, feature_map in enumerate(maps, start=1):
            # fp32 rounding in another order, on values of about 4
            torch.testing.assert_close(feature_map, golden[f"{size}.feature{stage}"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("last_stage", [1, 2, 3])
def test_backbone_with_fewer_stages(last_stage, classifier, folder):
    backbone = make_backbone(out_features=STAGES[:last_stage])
    report = load_pretrained_backbone(backbone, folder)
    assert_holds(backbone, classifier.pvt)
    assert set(report.loaded) == backbone.state_dict().keys() and report.missing == []
    source = {name for name in classifier.pvt.state_dict()} | {"classifier.weight", "classifier.bias"}
    assert set(report.unused) == source - backbone.state_dict().keys()


def test_backbone_with_more_blocks(classifier, folder):
    backbone = randomize(make_backbone(depths=[1, 2, 2, 1]))
    before = copy.deepcopy(backbone.state_dict())
    report = load_pretrained_backbone(backbone, folder)
    new_block = {key for key in before if key.startswith("encoder.block.2.1.")}
    assert set(report.missing) == new_block and new_block
    assert_holds(backbone, classifier.pvt, but=new_block)
    assert all(torch.equal(backbone.state_dict()[key], before[key]) for key in new_block)


def test_backbone_checkpoint_with_fewer_stages(tmp_path):
    source = randomize(make_backbone(out_features=["stage2"]), seed=5)
    source.save_pretrained(tmp_path)
    backbone = make_backbone()
    report = load_pretrained_backbone(backbone, tmp_path)
    assert set(report.loaded) == source.state_dict().keys() and report.unused == []
    assert set(report.missing) == backbone.state_dict().keys() - source.state_dict().keys()
    assert_holds(source, backbone)


def test_from_the_backbone_of_another_head(tmp_path):
    """A segmenter's backbone, which returns four stages, in DETR, which reads the last."""
    source = SemanticFpnForSemanticSegmentation(
        SemanticFpnConfig(backbone_config=tiny_pvt_config(out_features=STAGES), fpn_channels=8, head_channels=8)
    )
    randomize(source, seed=5)
    source.save_pretrained(tmp_path)
    model = make_detr()
    report = load_pretrained_backbone(model, tmp_path)
    assert_holds(backbone_of(model), source.backbone)
    assert set(report.loaded) == source.backbone.state_dict().keys() and report.missing == []
    assert set(report.unused) == {name for name in source.state_dict() if not name.startswith("backbone.")}


RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}


def resnet_folder(path):
    source = ResNetForImageClassification(ResNetConfig(**RESNET, num_labels=3))
    randomize(source)
    generator = torch.Generator().manual_seed(6)
    for name, buffer in source.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator))
    source.save_pretrained(path)
    return source


def test_another_architecture(tmp_path):
    source = resnet_folder(tmp_path)
    config = ResNetConfig(**RESNET, out_features=["stage4"])
    backbone = ResNetBackbone(config)
    report = load_pretrained_backbone(backbone, tmp_path)
    assert_holds(backbone, source.resnet)
    assert set(report.loaded) == backbone.state_dict().keys() and report.missing == report.resized == []
    assert set(report.unused) == {"classifier.1.weight", "classifier.1.bias"}

    detr = DetrForObjectDetection(DetrConfig(backbone_config=config, **TINY_DETR))
    load_pretrained_backbone(detr, tmp_path)
    inside = next(module for module in detr.modules() if isinstance(module, ResNetBackbone))
    assert_holds(inside, source.resnet)  # DETR's frozen batch norms, statistics included


def test_report_reads_as_one_line(folder):
    report = load_pretrained_backbone(make_backbone(image_size=96), folder)
    assert report.loaded and "\n" not in str(report)
    assert f"{len(report.loaded)} tensors loaded, 4 position tables resized; 0 missing; 5 unused" in str(report)
    assert "classifier.bias" in str(report)


# Errors, after each of which the model is what it was


def rename_keys(folder, target, prefix):
    target.mkdir()
    (target / "config.json").write_text((folder / "config.json").read_text())
    state_dict = load_file(folder / "model.safetensors")
    save_file(
        {prefix + key: tensor for key, tensor in state_dict.items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    return target


def two_backbones():
    return nn.ModuleList([make_backbone(), SwinBackbone(SwinConfig(embed_dim=8, depths=[1], num_heads=[1]))])


@pytest.mark.parametrize(
    ("make", "checkpoint", "error", "words"),
    [
        (lambda: nn.Linear(2, 2), "classifier", ValueError, ["Linear", "none"]),
        (lambda: PvtForImageClassification(tiny_pvt_config()), "classifier", ValueError, ["exactly one", "none"]),
        (two_backbones, "classifier", ValueError, ["PvtBackbone, SwinBackbone", "Pass the backbone itself"]),
        (make_backbone, "resnet", ValueError, ["'resnet'", "'pvt'"]),
        (make_detr, "detr", ValueError, ["Nothing in", "PvtBackbone"]),
        (
            lambda: make_detr(hidden_sizes=[32, 64, 160, 256]),
            "classifier",
            ValueError,
            ["(1, 256, 16)", "(1, 256, 32)", "AutoConfig.from_pretrained"],
        ),
        (lambda: make_backbone(num_channels=4), "classifier", ValueError, ["(16, 3, 4, 4)", "(16, 4, 4, 4)"]),
        (
            lambda: make_backbone(num_attention_heads=[2, 4, 8, 16]),
            "classifier",
            ValueError,
            ["[1, 2, 5, 8]", "[2, 4, 8, 16]"],
        ),
        (make_backbone, "renamed", ValueError, ["Nothing in", "module.pvt.encoder", "encoder.patch_embeddings"]),
        (make_upernet, "renamed", ValueError, ["Nothing in", "PvtBackbone"]),
        (
            lambda: ResNetBackbone(ResNetConfig(**RESNET)),
            "renamed-resnet",
            ValueError,
            ["Nothing in", "module.resnet", "embedder.embedder"],
        ),
        (lambda: ResNetBackbone(ResNetConfig(**RESNET)), "official", ValueError, ["Nothing in", "ResNetBackbone"]),
        (
            lambda: make_backbone(hidden_sizes=[32, 64, 160, 256]),
            "official",
            ValueError,
            ["(1, 256, 16)", "(1, 256, 32)", "load_official_checkpoint"],
        ),
        (make_backbone, "absent", OSError, ["There is no", "absent"]),
        (make_backbone, "broken", ValueError, ["The weights of", "broken", "header"]),
        (make_backbone, "no-weights", OSError, ["no-weights"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_errors_leave_the_model_unchanged(make, checkpoint, error, words, folder, tmp_path):
    path = tmp_path / checkpoint
    if checkpoint == "classifier":
        path = folder
    elif checkpoint == "official":
        path = GOLDEN / "official_layout_tiny.pth"
    elif checkpoint == "resnet":
        resnet_folder(path)
    elif checkpoint == "detr":
        make_detr().save_pretrained(path)
    elif checkpoint == "renamed":
        rename_keys(folder, path, "module.")
    elif checkpoint == "renamed-resnet":
        resnet_folder(tmp_path / "source")
        rename_keys(tmp_path / "source", path, "module.")
    elif checkpoint == "broken":
        shutil.copytree(folder, path)
        (path / "model.safetensors").write_bytes(b"\xff" * 1000)
    elif checkpoint == "no-weights":
        tiny_pvt_config().save_pretrained(path)
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error) as caught:
        load_pretrained_backbone(model, path)
    for word in words:
        assert word in str(caught.value)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_the_advice_in_the_error_works(classifier, folder):
    backbone = PvtBackbone(AutoConfig.from_pretrained(folder, out_features=["stage1", "stage2"]))
    load_pretrained_backbone(backbone, folder)
    assert_holds(backbone, classifier.pvt)


QUIET = """
import json, sys
import torch
from transformers import AutoConfig, DetrConfig, DetrForObjectDetection, UperNetConfig, UperNetForSemanticSegmentation
from transformers.utils import logging
import pvt_hf

folder, official, detr = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
stages = ["stage1", "stage2", "stage3", "stage4"]
config = AutoConfig.from_pretrained(folder, out_features=["stage4"], image_size=96)
verbosity = logging.get_verbosity()
detr = DetrForObjectDetection(DetrConfig(backbone_config=config, **detr))
upernet = UperNetForSemanticSegmentation(
    UperNetConfig(backbone_config=AutoConfig.from_pretrained(folder, out_features=stages), auxiliary_in_channels=80)
)
reports = [pvt_hf.load_pretrained_backbone(model, folder) for model in (detr, upernet)]
official_config = pvt_hf.load_official_checkpoint(official).config
reports.append(pvt_hf.load_pretrained_backbone(pvt_hf.PvtBackbone(official_config), official))
assert logging.get_verbosity() == verbosity
print(json.dumps([report.resized for report in reports]))
"""


def test_loading_is_quiet(folder):
    process = run_python(QUIET, folder, GOLDEN / "official_layout_tiny.pth", json.dumps(TINY_DETR), warm=True)
    assert without_progress_bars(process.stderr) == ""
    assert json.loads(process.stdout) == [TABLES, [], []]
