"""
Official checkpoints convert to our models exactly, completely and safely.

Proved against data that the official code computed (golden), against key names and shapes written down here from the
official layout (not from the converter's tables), and against an independent forward pass from the official tensors,
which is itself held to the golden data.

    python -m pytest tests/weights/test_conversion.py
"""

import argparse
import math
import os
import pickle

import pytest
import safetensors.torch
import torch

from pvt_hf import PvtBackbone, PvtForImageClassification
from pvt_hf.weights.official import load_official_checkpoint, model_from_official_state_dict
from pvt_hf.weights.official_files import read_checkpoint, unwrap_checkpoint
from pvt_hf.weights.official_forward import official_feature_maps, official_logits
from pvt_hf.weights.official_layout import convert_official_state_dict, convert_to_official_state_dict
from pvt_hf.weights.variants import get_variant

from ..support.golden import GOLDEN_WEIGHTS


GOLDEN_SIZES = ["64x64", "96x128", "72x100", "128x96", "65x67"]
HEADS = [1, 2, 5, 8]
CLASSIFIER_KEYS = ["cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"]
# fp32 rounding in another order of operations, at values of about 4: golden data agrees to 4e-6
TOLERANCE = 1e-5


def official_state_dict(
    depths=(1, 2, 1, 1),
    widths=(8, 16, 20, 32),
    mlp_ratios=(8, 8, 4, 4),
    grids=((16, 16), (8, 8), (4, 4), (2, 2)),
    channels=3,
    classes=5,
    bias=True,
    device="cpu",
):
    """A classifier's checkpoint with random weights, written down from the official layout (all keys, all shapes)."""
    shapes = {}
    for i in range(1, 5):
        c, patch, ratio = widths[i - 1], 4 if i == 1 else 2, (8, 4, 2, 1)[i - 1]
        shapes[f"pos_embed{i}"] = (1, math.prod(grids[i - 1]) + (i == 4), c)
        shapes[f"patch_embed{i}.proj.weight"] = (c, channels if i == 1 else widths[i - 2], patch, patch)
        for name in ("proj.bias", "norm.weight", "norm.bias"):
            shapes[f"patch_embed{i}.{name}"] = (c,)
        for j in range(depths[i - 1]):
            block, hidden = f"block{i}.{j}", mlp_ratios[i - 1] * c
            for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attn.proj.bias", "mlp.fc2.bias"):
                shapes[f"{block}.{name}"] = (c,)
            shapes[f"{block}.attn.q.weight"] = shapes[f"{block}.attn.proj.weight"] = (c, c)
            shapes[f"{block}.attn.kv.weight"] = (2 * c, c)
            if bias:
                shapes[f"{block}.attn.q.bias"], shapes[f"{block}.attn.kv.bias"] = (c,), (2 * c,)
            if ratio > 1:
                shapes[f"{block}.attn.sr.weight"] = (c, c, ratio, ratio)
                for name in ("sr.bias", "norm.weight", "norm.bias"):
                    shapes[f"{block}.attn.{name}"] = (c,)
            shapes[f"{block}.mlp.fc1.weight"], shapes[f"{block}.mlp.fc1.bias"] = (hidden, c), (hidden,)
            shapes[f"{block}.mlp.fc2.weight"] = (c, hidden)
    shapes |= {"cls_token": (1, 1, widths[3]), "norm.weight": (widths[3],), "norm.bias": (widths[3],)}
    shapes |= {"head.weight": (classes, widths[3]), "head.bias": (classes,)}
    torch.manual_seed(0)
    return {key: 0.2 * torch.randn(shape, device=device) for key, shape in shapes.items()}


def dense_only(state_dict):
    return {key: tensor for key, tensor in state_dict.items() if key not in CLASSIFIER_KEYS}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]), key


@pytest.fixture
def saved(tmp_path):
    def save(content, name="checkpoint.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


# What is computed


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_golden_logits_through_the_conversion(golden, attention):
    model = load_official_checkpoint(GOLDEN_WEIGHTS)
    assert type(model) is PvtForImageClassification and not model.training
    model.set_attn_implementation(attention)
    for size in GOLDEN_SIZES:
        logits = model(golden[f"{size}.pixel_values"]).logits
        torch.testing.assert_close(logits, golden[f"{size}.logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_golden_feature_maps_through_the_conversion(golden, golden_weights, saved, attention):
    model = load_official_checkpoint(saved(dense_only(golden_weights)))
    assert type(model) is PvtBackbone and model.out_features == ["stage1", "stage2", "stage3", "stage4"]
    model.set_attn_implementation(attention)
    for size in GOLDEN_SIZES:
        maps = model(golden[f"{size}.pixel_values"]).feature_maps
        for i, feature_map in enumerate(maps, start=1):
            torch.testing.assert_close(feature_map, golden[f"{size}.feature{i}"], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_official_forward_reproduces_golden_data(golden, golden_weights):
    """The oracle of the script's verification is itself held to the official code."""
    for size in GOLDEN_SIZES:
        pixel_values = golden[f"{size}.pixel_values"]
        logits = official_logits(golden_weights, pixel_values, HEADS, (64, 64))
        torch.testing.assert_close(logits, golden[f"{size}.logits"], atol=TOLERANCE, rtol=0)
        maps = official_feature_maps(dense_only(golden_weights), pixel_values, HEADS, (64, 64))
        for i, feature_map in enumerate(maps, start=1):
            torch.testing.assert_close(feature_map, golden[f"{size}.feature{i}"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "settings, config",
    [
        ({"bias": False}, {"qkv_bias": False}),
        ({"classes": 7}, {"num_labels": 7}),
        ({"channels": 1, "mlp_ratios": (4, 2, 3, 1)}, {"num_channels": 1, "mlp_ratios": [4, 2, 3, 1]}),
    ],
    ids=["no bias", "7 classes", "1 channel, other MLP ratios"],
)
@torch.no_grad()
def test_architecture_is_read_from_the_tensors(saved, settings, config):
    weights = official_state_dict(**settings)
    model = load_official_checkpoint(saved(weights))
    expected = {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 16, 20, 32], "image_size": 64, "patch_sizes": [4, 2, 2, 2]}
    expected |= {"sequence_reduction_ratios": [8, 4, 2, 1], "num_attention_heads": HEADS, **config}
    assert {name: getattr(model.config, name) for name in expected} == expected
    pixel_values = torch.randn(2, model.config.num_channels, 80, 112)
    torch.testing.assert_close(
        model(pixel_values).logits, official_logits(weights, pixel_values, HEADS, (64, 64)), atol=TOLERANCE, rtol=1e-5
    )


@pytest.mark.parametrize(
    "name, parameters, dense_parameters, official_entries, our_entries",
    [
        ("pvt-tiny", 13_229_288, 12_714_752, 161, 177),
        ("pvt-small", 24_485_864, 23_971_328, 301, 333),
        ("pvt-medium", 44_208_104, 43_693_568, 517, 573),
        ("pvt-large", 61_369_320, 60_854_784, 751, 833),
    ],
)
def test_published_variants(name, parameters, dense_parameters, official_entries, our_entries):
    """Counts of the official code; on the meta device, where shapes are real and weights cost nothing."""
    weights = official_state_dict(
        depths=get_variant(name).config["depths"],
        widths=(64, 128, 320, 512),
        grids=((56, 56), (28, 28), (14, 14), (7, 7)),
        classes=1000,
        device="meta",
    )
    assert len(weights) == official_entries
    converted = convert_official_state_dict(weights)
    assert len(converted) == our_entries
    model = model_from_official_state_dict(weights, **get_variant(name).config)
    assert model.num_parameters() == parameters and model.config.image_size == 224
    assert model.config.num_attention_heads == HEADS
    assert model_from_official_state_dict(dense_only(weights)).num_parameters() == dense_parameters
    back = convert_to_official_state_dict(converted)
    assert {key: tensor.shape for key, tensor in back.items()} == {key: tensor.shape for key, tensor in weights.items()}


# State dict to state dict


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_inverse_is_exact_in_both_directions(dense, bias, dtype):
    weights = {key: tensor.to(dtype) for key, tensor in official_state_dict(bias=bias).items()}
    weights = dense_only(weights) if dense else weights
    converted = convert_official_state_dict(weights)
    assert_same_bits(convert_to_official_state_dict(converted), weights)
    assert_same_bits(convert_official_state_dict(convert_to_official_state_dict(converted)), converted)


def test_inverse_takes_models(golden_weights):
    classifier = model_from_official_state_dict(golden_weights)
    assert_same_bits(convert_to_official_state_dict(classifier.state_dict()), golden_weights)
    backbone = model_from_official_state_dict(dense_only(golden_weights))
    assert_same_bits(convert_to_official_state_dict(backbone.state_dict()), dense_only(golden_weights))
    with pytest.raises(ValueError, match=r"Missing keys .*classifier\.weight"):
        convert_to_official_state_dict(classifier.pvt.state_dict(prefix="pvt."))


def test_key_and_value_are_the_rows_of_the_official_matrix(golden_weights):
    converted = convert_official_state_dict(golden_weights)
    name = "pvt.encoder.block.1.1.attention.self"
    for parameter in ("weight", "bias"):
        fused = golden_weights[f"block2.1.attn.kv.{parameter}"]
        assert torch.equal(converted[f"{name}.key.{parameter}"], fused[:32])
        assert torch.equal(converted[f"{name}.value.{parameter}"], fused[32:])


def test_tensors_share_no_storage_and_are_contiguous(golden_weights, tmp_path):
    weights = dict(golden_weights)
    weights["norm.bias"] = weights["norm.weight"]  # tied in the source
    name = "patch_embed1.proj.weight"
    weights[name] = weights[name].to(memory_format=torch.channels_last)
    for result in (converted := convert_official_state_dict(weights), convert_to_official_state_dict(converted)):
        storages = [tensor.untyped_storage().data_ptr() for tensor in [*result.values(), *weights.values()]]
        assert len(set(storages)) == len(storages) - 1  # the tied pair
        safetensors.torch.save_file(result, tmp_path / "model.safetensors")  # refuses both


def test_leftover_and_missing_keys_are_all_listed(golden_weights):
    weights = dict(golden_weights)
    weights["aux_head.weight"] = weights["block4.0.attn.sr.weight"] = torch.zeros(1)
    del weights["block2.1.mlp.fc1.bias"], weights["pos_embed3"]
    with pytest.raises(ValueError) as error:
        convert_official_state_dict(weights)
    leftover, missing = str(error.value).splitlines()[1:]
    assert leftover.endswith("(2): aux_head.weight, block4.0.attn.sr.weight")
    assert missing.endswith("(2): block2.1.mlp.fc1.bias, pos_embed3")

    ours = convert_official_state_dict(golden_weights)
    ours["decoder.bias"] = ours.pop("pvt.encoder.block.0.0.attention.self.key.bias")
    with pytest.raises(ValueError, match=r"(?s)decoder\.bias.*block\.0\.0\.attention\.self\.key\.bias"):
        convert_to_official_state_dict(ours)


@pytest.mark.parametrize(
    "key", [*CLASSIFIER_KEYS, "block1.0.attn.q.bias", "block1.0.attn.sr.weight", "block2.0.norm1.bias"]
)
def test_every_single_key_is_required(golden_weights, key):
    with pytest.raises(ValueError, match=rf"Missing keys \(1\): {key.replace('.', '[.]')}$"):
        convert_official_state_dict({name: tensor for name, tensor in golden_weights.items() if name != key})


@pytest.mark.parametrize("pattern", ["block3.", "block4."])
def test_a_missing_stage_is_no_smaller_model(golden_weights, pattern):
    weights = {key: tensor for key, tensor in dense_only(golden_weights).items() if not key.startswith(pattern)}
    with pytest.raises(ValueError, match=rf"Missing keys \(\d+\): {pattern.replace('.', '[.]')}"):
        convert_official_state_dict(weights)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("block1.0.attn.kv.weight", torch.zeros(33, 16), "even number of rows"),
        ("norm.weight", 1.0, "norm.weight is float"),
        ("norm.weight", torch.zeros(128, dtype=torch.int64), "torch.int64"),
        ("block1.0.attn.q.weight", torch.zeros(16, 17), r"query.weight: \(16, 17\), \(16, 16\)"),
        ("patch_embed1.proj.weight", torch.zeros(16, 48), "expected 4 dimensions"),
        ("block1.0.mlp.fc1.weight", torch.zeros(130, 16), "expected a multiple"),
        ("block1.0.attn.sr.weight", torch.zeros(16, 16, 1, 1), "sequence_reduction.weight"),
    ],
)
def test_malformed_tensors(golden_weights, key, value, message):
    with pytest.raises(ValueError, match=message):
        model_from_official_state_dict({**golden_weights, key: value})


# What tensors do not tell


def test_size_that_is_no_multiple_of_the_patch_gives_the_same_grids():
    """The official model for 230 pixels has tables of 3249, 784, 196 and 49 (+ 1) rows; 228 gives the same."""
    grids = ((57, 57), (28, 28), (14, 14), (7, 7))
    weights = official_state_dict(grids=grids)
    assert model_from_official_state_dict(weights).config.image_size == 228
    assert model_from_official_state_dict(weights, image_size=230).config.image_size == 230
    with pytest.raises(ValueError, match=r"\[3249, 784, 196, 49\] patch rows.*232x232"):
        model_from_official_state_dict(weights, image_size=232)


@torch.no_grad()
def test_non_square_table_needs_its_size():
    weights = official_state_dict(grids=((16, 24), (8, 12), (4, 6), (2, 3)))
    with pytest.raises(ValueError, match=r"no square.*image_size=\(height, width\)"):
        model_from_official_state_dict(weights)
    with pytest.raises(ValueError, match="patch rows"):
        model_from_official_state_dict(weights, image_size=(64, 64))
    model = model_from_official_state_dict(weights, image_size=(64, 96))
    for size in ((64, 96), (96, 64)):
        pixel_values = torch.randn(1, 3, *size)
        expected = official_logits(weights, pixel_values, HEADS, (64, 96))
        torch.testing.assert_close(model(pixel_values).logits, expected, atol=TOLERANCE, rtol=1e-5)


def test_tables_that_fit_no_common_size():
    """16 x 16 in stage 1 but 3 x 3 in stage 4; as much for a non-square grid that has a square number of cells."""
    with pytest.raises(ValueError, match=r"\[256, 64, 16, 9\] patch rows"):
        model_from_official_state_dict(official_state_dict(grids=((16, 16), (8, 8), (4, 4), (3, 3))))
    with pytest.raises(ValueError, match=r"\[3136, 784, 196, 42\] patch rows"):
        model_from_official_state_dict(official_state_dict(grids=((28, 112), (14, 56), (7, 28), (3, 14))))


@pytest.mark.parametrize(
    "widths, heads",
    [
        ((64, 128, 320, 512), [1, 2, 5, 8]),
        ((89, 178, 445, 712), [1, 2, 5, 8]),
        ((128, 256, 512, 768), [2, 4, 8, 12]),  # official pvt_huge_v2
    ],
)
def test_heads_are_inferred(widths, heads):
    weights = official_state_dict(widths=widths, device="meta")
    assert model_from_official_state_dict(weights).config.num_attention_heads == heads
    assert model_from_official_state_dict(weights, num_attention_heads=[1] * 4).config.num_attention_heads == [1] * 4


def test_heads_that_cannot_be_inferred():
    weights = official_state_dict(widths=(8, 16, 24, 32))
    with pytest.raises(ValueError, match="pass num_attention_heads"):
        model_from_official_state_dict(weights)
    with pytest.raises(ValueError, match="num_attention_heads of stage 3"):
        model_from_official_state_dict(weights, num_attention_heads=[1, 2, 5, 8])


@pytest.mark.parametrize("override", [{"depths": [2, 2, 2, 2]}, {"num_labels": 3}, {"id2label": {0: "a", 1: "b"}}])
def test_overrides_that_contradict_the_tensors(golden_weights, override):
    with pytest.raises(ValueError, match=next(iter(override))):
        model_from_official_state_dict(golden_weights, **override)


def test_overrides_that_tensors_do_not_tell(golden_weights):
    names = {index: f"class {index}" for index in range(10)}
    config = model_from_official_state_dict(
        golden_weights, id2label=names, drop_path_rate=0.1, depths=(1, 2, 2, 1)
    ).config
    assert config.id2label == names and config.drop_path_rate == 0.1


@torch.no_grad()
def test_backbone_with_fewer_stages(golden, golden_weights):
    backbone = model_from_official_state_dict(dense_only(golden_weights), out_features=["stage1", "stage2"])
    assert len(backbone.encoder.block) == 2
    maps = backbone(golden["72x100.pixel_values"]).feature_maps
    torch.testing.assert_close(maps[1], golden["72x100.feature2"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "dtype, expected",
    [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float64, torch.float64)],
)
def test_dtype_of_the_model(golden_weights, dtype, expected):
    weights = {key: tensor.to(dtype) for key, tensor in golden_weights.items()}
    model = model_from_official_state_dict(weights)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    mixed = model_from_official_state_dict({**golden_weights, "head.bias": weights["head.bias"]})
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.float32}


# Files


def wrapped_files():
    def module(weights):
        return {f"module.{key}": tensor for key, tensor in weights.items()}

    return {
        "flat": lambda weights: weights,
        "model": lambda weights: {"model": weights},
        "state_dict": lambda weights: {"state_dict": weights, "meta": {"epoch": 12, "CLASSES": ("a", "b")}},
        "DistributedDataParallel": lambda weights: {"model": module(weights)},
        "official trainer": lambda weights: {
            "model": weights,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3), "step": 7}}, "param_groups": [{"lr": 1e-3}]},
            "lr_scheduler": {"base_values": [1e-3]},
            "epoch": 3,
            "scaler": {"scale": 65536.0, "_growth_tracker": 2},
            "args": argparse.Namespace(batch_size=128, model="pvt_tiny", clip_grad=None, dist_eval=True),
        },
    }


@pytest.mark.parametrize("wrapping", wrapped_files())
@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
def test_wrapped_files(golden_weights, tmp_path, wrapping, zip_file):
    path = tmp_path / "checkpoint.pth"
    torch.save(wrapped_files()[wrapping](golden_weights), path, _use_new_zipfile_serialization=zip_file)
    model = load_official_checkpoint(path)
    assert_same_bits(convert_to_official_state_dict(model.state_dict()), golden_weights)


def test_safe_globals_stay_local(golden_weights, saved):
    path = saved({"model": golden_weights, "args": argparse.Namespace(lr=1.0)})
    load_official_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_safetensors_file_in_the_official_layout(golden_weights, tmp_path):
    safetensors.torch.save_file(golden_weights, tmp_path / "pvt.safetensors")
    model = load_official_checkpoint(str(tmp_path / "pvt.safetensors"))
    assert_same_bits(convert_to_official_state_dict(model.state_dict()), golden_weights)


def test_backbone_of_a_detector(golden_weights, saved, monkeypatch):
    warnings = []
    monkeypatch.setattr("pvt_hf.weights.official_files.logger.warning", warnings.append)
    detector = {f"backbone.{key}": tensor for key, tensor in dense_only(golden_weights).items()}
    detector |= {
        "neck.fpn.weight": torch.zeros(2),
        "bbox_head.cls.bias": torch.zeros(2),
        "bbox_head.reg.bias": torch.zeros(2),
    }
    model = load_official_checkpoint(saved({"meta": {}, "state_dict": detector}))
    assert type(model) is PvtBackbone
    assert_same_bits(convert_to_official_state_dict(model.state_dict()), dense_only(golden_weights))
    assert len(warnings) == 1 and "3 tensors of bbox_head, neck are left out" in warnings[0]
    with pytest.raises(ValueError, match="another one beside it"):
        unwrap_checkpoint({**detector, "pos_embed1": torch.zeros(1, 1, 1)})


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "holds a list, expected a dictionary"),
        ({"model": {}, "state_dict": {}}, "both 'model' and 'state_dict'"),
        ({}, r"Missing keys \(\d+\): block1"),
        ({"layer1.0.conv1.weight": torch.zeros(1)}, r"without a counterpart \(1\): layer1\.0\.conv1\.weight"),
    ],
    ids=["list", "two wrappings", "empty", "another model"],
)
def test_files_without_one_pvt(saved, content, message):
    with pytest.raises(ValueError, match=message):
        load_official_checkpoint(saved(content))


def test_our_own_layout_is_pointed_to_from_pretrained(tmp_path):
    load_official_checkpoint(GOLDEN_WEIGHTS).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_pretrained"):
        load_official_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(IsADirectoryError, match="from_pretrained"):
        load_official_checkpoint(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="check the path, or download"):
        load_official_checkpoint(tmp_path / "pvt_small.pth")


class Payload:
    """Unpickling this creates the file `flag`."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (str(self.flag),)


@pytest.mark.parametrize("where", ["in the weights", "in args", "instead"])
@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_executes_is_refused(golden_weights, tmp_path, where, zip_file):
    flag, path = tmp_path / "executed", tmp_path / "evil.pth"
    payload = Payload(flag)
    content = {
        "in the weights": {**golden_weights, "norm.weight": payload},
        "in args": {"model": golden_weights, "args": argparse.Namespace(lr=payload)},
        "instead": payload,
    }[where]
    torch.save(content, path, _use_new_zipfile_serialization=zip_file)
    with pytest.raises(ValueError, match=r"was refused and no code in it was run.*\.mkdir"):
        load_official_checkpoint(path)
    assert not flag.exists()
    torch.load(path, weights_only=False)
    assert flag.exists()  # the payload does work where code is let through


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_is_not_executed(tmp_path, protocol):
    flag, path = tmp_path / "executed", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Payload(flag), protocol=protocol))
    with pytest.raises(ValueError, match="no code in it was run"):
        load_official_checkpoint(path)
    assert not flag.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", ["empty", "text", "noise", "truncated"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_and_foreign_files(golden_weights, tmp_path, content, suffix):
    path = tmp_path / f"broken{suffix}"
    if suffix == ".pth":
        torch.save(golden_weights, path)
    else:
        safetensors.torch.save_file(golden_weights, path)
    whole = path.read_bytes()
    noise = torch.randint(0, 256, (5000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    contents = {
        "empty": b"",
        "text": b"<html>Not found</html>",
        "noise": bytes(noise.tolist()),
        "truncated": whole[:-1000],
    }
    path.write_bytes(contents[content])
    with pytest.raises(ValueError, match=rf"broken{suffix} is (empty|not a complete)"):
        load_official_checkpoint(path)


def test_read_checkpoint_gives_what_was_saved(saved):
    content = read_checkpoint(saved({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=0.5)}))
    assert content["args"].lr == 0.5 and torch.equal(unwrap_checkpoint(content)["a"], torch.ones(2))
