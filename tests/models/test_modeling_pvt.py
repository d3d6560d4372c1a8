"""
The three PVT classes keep the contract of models and compute what Transformers' native PVT does.

    pytest tests/models/test_modeling_pvt.py
"""

import pytest
import torch
from torch import nn
from transformers.models.pvt import modeling_pvt as native

from pvt_hf import PvtBackbone, PvtConfig, PvtForImageClassification, PvtModel
from pvt_hf.models.modeling_pvt import PvtDropPath, resize_position_table
from pvt_hf.weights.variants import VARIANTS, get_config

from ..support.common import FP32_TOLERANCE, random_images, randomize, tiny_pvt_config
from ..support.model_contract import ModelContract


class TestPvtModel(ModelContract):
    model_class = PvtModel
    # Compiled and exported as part of the classifier
    test_compiles_without_graph_breaks = test_compiled_training_step = None
    test_exports_with_dynamic_batch_height_and_width = None

    def make_config(self, **overrides):
        return tiny_pvt_config(**overrides)

    def output_tensors(self, outputs):
        return [outputs.last_hidden_state]


class TestPvtBackbone(ModelContract):
    model_class = PvtBackbone
    # Compiled and exported as part of every head
    test_compiles_without_graph_breaks = test_compiled_training_step = None
    test_exports_with_dynamic_batch_height_and_width = None

    def make_config(self, **overrides):
        return tiny_pvt_config(**{"out_features": ["stage1", "stage2", "stage3", "stage4"], **overrides})

    def output_tensors(self, outputs):
        return list(outputs.feature_maps)

    def test_feature_maps_are_contiguous_and_floor(self):
        maps = self.make_model()(random_images(2, 101, 77)).feature_maps
        assert [tuple(m.shape) for m in maps] == [(2, 16, 25, 19), (2, 32, 12, 9), (2, 80, 6, 4), (2, 128, 3, 2)]
        assert all(m.is_contiguous() for m in maps)

    def test_out_features_select_and_later_stages_are_not_built(self):
        full, images = self.make_model(), random_images(2, 64, 96)
        expected = dict(zip(full.out_features, full(images).feature_maps))
        part = PvtBackbone(self.make_config(out_features=["stage1", "stage3"])).eval()
        assert part.channels == [16, 80]
        part.load_state_dict({k: v for k, v in full.state_dict().items() if k in part.state_dict()})
        assert not any(".3." in name and "block.3" in name for name in part.state_dict())
        for name, feature_map in zip(part.out_features, part(images).feature_maps):
            assert torch.equal(feature_map, expected[name])
        sum(m.sum() for m in part.train()(images).feature_maps).backward()
        assert all(p.grad is not None for p in part.parameters())
        part.out_features = ["stage4"]
        with pytest.raises(ValueError, match="built up to stage3"):
            part(images)

    def test_negative_out_indices(self):
        backbone = PvtBackbone(tiny_pvt_config(out_indices=[-2, -1]))
        assert backbone.out_features == ["stage3", "stage4"]
        assert len(backbone(random_images(1, 64, 64)).feature_maps) == 2

    def test_unknown_stage(self):
        with pytest.raises(ValueError, match="stem"):
            tiny_pvt_config(out_features=["stem"])


class TestPvtForImageClassification(ModelContract):
    model_class = PvtForImageClassification
    has_labels = True
    compile_overrides = {"depths": [1, 1, 1, 1]}

    @pytest.mark.slow
    def test_compiles_with_inductor(self):
        self.compare_compiled("inductor")

    def make_config(self, **overrides):
        return tiny_pvt_config(**overrides)

    def output_tensors(self, outputs):
        return [outputs.logits]

    def make_labels(self, batch):
        return torch.arange(batch) % 5

    def test_losses_of_every_problem_type(self):
        images = random_images(3, 64, 64)
        classes = torch.tensor([0, 4, 2])
        several = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1.0]])
        values = torch.randn(3, 5)
        for problem_type, labels, expected in (
            ("single_label_classification", classes, lambda x: nn.functional.cross_entropy(x, classes)),
            (
                "multi_label_classification",
                several,
                lambda x: nn.functional.binary_cross_entropy_with_logits(x, several),
            ),
            ("regression", values, lambda x: nn.functional.mse_loss(x, values)),
        ):
            for configured in (problem_type, None) if problem_type != "regression" else (problem_type,):
                model = self.make_model(problem_type=configured)
                outputs = model(images, labels=labels)
                torch.testing.assert_close(outputs.loss, expected(outputs.logits))
                assert model.config.problem_type == problem_type
        model = self.make_model(num_labels=1)
        outputs = model(images, labels=values[:, 0])
        torch.testing.assert_close(outputs.loss, nn.functional.mse_loss(outputs.logits[:, 0], values[:, 0]))

    def test_loss_honours_the_trainers_item_count(self):
        """When Trainer accumulates gradients it passes `num_items_in_batch` and does not divide the loss itself."""
        model, images, labels = self.make_model(), random_images(2, 64, 64), self.make_labels(2)
        mean = model(images, labels=labels).loss
        torch.testing.assert_close(model(images, labels=labels, num_items_in_batch=8).loss, mean * 2 / 8)

    def test_without_labels(self):
        assert self.make_model(num_labels=0)(random_images(1, 64, 64)).logits.shape == (1, 128)


def native_pair(name: str, image_size: int = 224, **overrides):
    """Native and our classifier with the same random weights and the native's single epsilon."""
    config = get_config(name, image_size=image_size, reduction_layer_norm_eps=1e-6, **overrides)
    fields = native.PvtConfig().to_dict().keys() & config.to_dict().keys()
    native_config = native.PvtConfig(**{key: config.to_dict()[key] for key in fields})
    theirs = randomize(native.PvtForImageClassification(native_config)).eval()
    ours = PvtForImageClassification(config).eval()
    ours.load_state_dict(theirs.state_dict())  # strict: the keys are the same
    return theirs, ours


@pytest.mark.parametrize(
    ("name", "parameters", "backbone_parameters", "entries"),
    [
        ("pvt-tiny", 13_229_288, 12_714_752, 177),
        ("pvt-small", 24_485_864, 23_971_328, 333),
        ("pvt-medium", 44_208_104, 43_693_568, 573),
        ("pvt-large", 61_369_320, 60_854_784, 833),
        ("pvt-small-wide", 46_818_544, None, 333),
    ],
)
def test_parameter_counts(name, parameters, backbone_parameters, entries):
    """PAPER_FACTS section 1.1 (counted on the official code) and the paper's rounded figures."""
    with torch.device("meta"):
        classifier, backbone = PvtForImageClassification(get_config(name)), PvtBackbone(get_config(name))
    assert round(classifier.num_parameters() / 1e6, 1) == VARIANTS[name].paper_params_m
    assert len(classifier.state_dict()) == entries
    if backbone_parameters:
        assert classifier.num_parameters() == parameters
        assert backbone.num_parameters() == backbone_parameters


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_equals_native_entry_by_entry(implementation):
    theirs, ours = native_pair("pvt-tiny", image_size=96, depths=[2, 1, 2, 1], num_labels=7)
    ours.set_attn_implementation(implementation)
    images = random_images(2, 96, 96)
    with torch.no_grad():
        expected = theirs(images, output_hidden_states=True, output_attentions=True)
        actual = ours(images, output_hidden_states=True, output_attentions=True)
        last = ours.pvt(images, output_attentions=True).last_hidden_state
    torch.testing.assert_close(actual.logits, expected.logits, **FP32_TOLERANCE)
    for key in ("hidden_states", "attentions"):
        assert len(actual[key]) == len(expected[key])
        for one, other in zip(actual[key], expected[key]):
            assert one.shape == other.shape
            # residual streams grow to some hundreds with these weights: relative to their scale
            assert (one - other).abs().max() <= 1e-5 * max(1.0, other.abs().max().item())
    assert torch.equal(actual.hidden_states[-1], last)


def test_hidden_states_by_index():
    model, images = PvtModel(tiny_pvt_config()).eval(), random_images(1, 64, 64)
    everything = model(images, output_hidden_states=True).hidden_states
    chosen = model(images, output_hidden_states=[-1, 1]).hidden_states
    assert [index for index, state in enumerate(chosen) if state is not None] == [1, len(everything) - 1]
    assert torch.equal(chosen[-1], everything[-1])


def test_hidden_states_of_a_backbone_by_index():
    """They are those of the stages that it has, without a final norm."""
    for stages in (["stage1"], ["stage2", "stage3"], ["stage4"]):
        model, images = PvtBackbone(tiny_pvt_config(out_features=stages)).eval(), random_images(1, 64, 64)
        everything = model(images, output_hidden_states=True).hidden_states
        for index in (-1, -len(everything), 0):
            chosen = model(images, output_hidden_states=[index]).hidden_states
            assert len(chosen) == len(everything) and torch.equal(chosen[index], everything[index])
            assert sum(state is not None for state in chosen) == 1


def bilinear_reference(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(rows0, columns0, channels) resized from the definition: half-pixel centres, edges repeated, in float64."""

    def weights(old: int, new: int) -> torch.Tensor:
        matrix = torch.zeros(new, old, dtype=torch.float64)
        for index in range(new):
            position = min(max((index + 0.5) * old / new - 0.5, 0), old - 1)
            low = min(int(position), old - 1)
            high = min(low + 1, old - 1)
            matrix[index, low] += 1 - (position - low)
            matrix[index, high] += position - low
        return matrix

    return torch.einsum(
        "hi,wj,ijc->hwc", weights(table.shape[0], rows), weights(table.shape[1], columns), table.double()
    )


# 448x448, 896x896: the official code crashes; 112x448, 512x1568: it crashes or scrambles; the rest do not divide by 32.
SIZES = [(224, 224), (448, 448), (896, 896), (112, 448), (512, 1568), (250, 333), (800, 1333), (32, 32), (36, 100)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_position_tables_follow_the_image(height, width):
    """Every stage's table, as the forward pass adds it, equals an independent resize of its own 224 grid."""
    torch.manual_seed(0)
    config = PvtConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 20, 32], num_attention_heads=[1, 2, 5, 8])
    for model in (PvtModel(config), PvtBackbone(config)):
        grids = []
        for embeddings in model.encoder.patch_embeddings:
            embeddings.register_forward_hook(lambda module, _, out, grids=grids: grids.append((module, out[1])))
        with torch.no_grad():
            model.eval()(random_images(1, height, width))
        assert [grid for _, grid in grids] == config.grid_sizes(height, width)
        for stage, (module, (rows, columns)) in enumerate(grids):
            table = module.position_embeddings[0]
            side = 56 // 2**stage
            patches = table[1:] if stage == 3 else table
            expected = bilinear_reference(patches.detach().unflatten(0, (side, side)), rows, columns).flatten(0, 1)
            actual = module.positions((rows, columns))[0]
            if stage == 3 and isinstance(model, PvtModel):
                assert torch.equal(actual[0], table[0])
                actual = actual[1:]
            # fp32 weights against float64 on numbers of size 0.02
            torch.testing.assert_close(actual.double(), expected, atol=1e-6, rtol=0)


def test_resizing_to_the_same_grid_is_exact_and_keeps_the_dtype():
    table = torch.randn(1, 1 + 6 * 9, 4)
    assert torch.equal(resize_position_table(table, (6, 9), (6, 9), 1), table)
    assert resize_position_table(table.bfloat16(), (6, 9), (3, 5), 1).dtype == torch.bfloat16


def test_rectangular_construction_size():
    model = randomize(PvtForImageClassification(tiny_pvt_config(image_size=(64, 96)))).eval()
    assert [e.position_embeddings.shape[1] for e in model.pvt.encoder.patch_embeddings] == [384, 96, 24, 7]
    assert model(random_images(1, 64, 96)).logits.shape == (1, 5)
    first = model.pvt.encoder.patch_embeddings[0]
    assert torch.equal(first.positions((16, 24)), first.position_embeddings)


def test_drop_path():
    torch.manual_seed(0)
    layer, ones = PvtDropPath(0.25).train(), torch.ones(20_000, 2, 3)
    dropped = layer(ones)
    per_sample = dropped[:, 0, 0]
    assert torch.equal(dropped, per_sample[:, None, None].expand_as(dropped))
    assert set(per_sample.tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    # 20,000 draws: the mean of kept samples is within 4 standard deviations, 4 * sqrt(.25 * .75 / 20000) = 0.0122
    assert abs((per_sample > 0).float().mean() - 0.75) < 0.0123
    assert torch.equal(layer.eval()(ones), ones)
    model = PvtModel(tiny_pvt_config(drop_path_rate=0.4, depths=[1, 2, 1, 1]))
    rates = [layer.drop_path.drop_prob for stage in model.encoder.block for layer in stage]
    torch.testing.assert_close(rates, torch.linspace(0, 0.4, 5).tolist())


def test_convolutions_keep_the_default_initialisation():
    """PAPER_FACTS section 1.6: standard deviations measured on the official code."""
    torch.manual_seed(0)
    model = PvtForImageClassification(PvtConfig())
    patch = model.pvt.encoder.patch_embeddings[0].projection
    reduction = model.pvt.encoder.block[0][0].attention.self.sequence_reduction
    assert abs(patch.weight.std() - 0.084) < 0.003 and patch.weight.abs().max() <= 0.1444
    assert abs(patch.bias.std() - 0.080) < 0.015
    assert abs(reduction.weight.std() - 0.0090) < 0.0001 and reduction.weight.abs().max() <= 0.0157
    assert abs(reduction.bias.std() - 0.0085) < 0.002
    for embeddings in model.pvt.encoder.patch_embeddings:
        assert abs(embeddings.position_embeddings.std() - 0.02) < 0.0005
    assert abs(model.pvt.encoder.patch_embeddings[3].cls_token.std() - 0.02) < 0.003


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"hidden_sizes": [64, 128, 321, 512]}, ["stage 3", "321", "5"]),
        ({"depths": [2, 2, 2]}, ["depths", "3", "4"]),
        ({"num_attention_heads": [1, 2, 5, 8, 8]}, ["num_attention_heads", "5", "4"]),
        ({"strides": [2, 2, 2, 2]}, ["strides", "patch_sizes"]),
        ({"image_size": 31}, ["image_size", "32", "31"]),
        ({"image_size": (224, 16)}, ["image_size", "32", "16"]),
        ({"image_size": (224, 224, 3)}, ["image_size"]),
        ({"depths": [2, 0, 2, 2]}, ["depths", "stage 2", "0"]),
        ({"drop_path_rate": 1.0}, ["drop_path_rate", "1.0"]),
        ({"num_encoder_blocks": 0}, ["num_encoder_blocks"]),
        ({"num_channels": 0}, ["num_channels"]),
        ({"num_labels": -3}, ["num_labels", "-3"]),
        ({"hidden_act": "gleu"}, ["hidden_act", "gleu", "gelu"]),
        ({"depths": [1.5, 2, 2, 2]}, ["depths", "1.5"]),
        ({"depths": 2}, ["depths", "4 integers"]),
        ({"layer_norm_eps": "a"}, ["layer_norm_eps", "a"]),
        ({"layer_norm_eps": 0.0}, ["layer_norm_eps"]),
        ({"depths": [2, 2, 10**9, 2]}, ["depths of stage 3", "1,000", "1000000000"]),
        ({"hidden_sizes": [64, 128, 320, 10**8]}, ["hidden_sizes of stage 4", "65,536"]),
        ({"mlp_ratios": [8, 8, 4, 10**8]}, ["mlp_ratios of stage 4"]),
        ({"num_labels": 10**9}, ["num_labels", "1,000,000", "1000000000"]),
        ({"num_channels": 10**9}, ["num_channels", "1000000000"]),
        ({"image_size": 10**6}, ["image_size", "16,384", "1000000"]),
    ],
)
def test_configurations_that_cannot_work(overrides, words):
    with pytest.raises(ValueError) as error:
        PvtConfig(**overrides)
    for word in words:
        assert word in str(error.value)


def test_image_size_is_written_as_the_native_class_reads_it():
    assert PvtConfig(image_size=(64, 64)).to_dict()["image_size"] == 64
    assert PvtConfig(image_size=[64, 96]).to_dict()["image_size"] == [64, 96]


def test_labels_of_a_configuration():
    names = {0: "cat", 1: "dog", 2: "cow"}
    assert PvtConfig().num_labels == 1000
    assert PvtConfig(num_labels=3).num_labels == 3
    assert PvtConfig(id2label=names).num_labels == 3
    assert PvtConfig(id2label=names).to_dict()["num_labels"] == 3
    assert PvtConfig.from_dict({"model_type": "pvt", "id2label": {"0": "cat", "1": "dog"}}).num_labels == 2
    saved = PvtConfig(id2label=names).to_dict()
    assert PvtConfig.from_dict(saved).id2label == names
    assert PvtConfig.from_dict(saved, num_labels=7).num_labels == 7
    assert PvtConfig.from_dict(saved, num_labels=3).id2label == names
    changed = PvtConfig.from_dict(saved, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    assert changed.num_labels == 2 and changed.to_dict()["num_labels"] == 2 and changed.label2id == {"a": 0, "b": 1}
    # A native file may name fewer classes than its head has rows
    partial = PvtConfig.from_dict({"num_labels": 4, "id2label": {"0": "cat"}})
    assert partial.id2label == {0: "cat", 1: "LABEL_1", 2: "LABEL_2", 3: "LABEL_3"}


def test_files_with_an_absurd_number_of_classes_are_refused():
    for content in ({"num_labels": 10**9}, {"num_labels": 10**9, "id2label": {"0": "cat"}}):
        with pytest.raises(ValueError, match="num_labels must be from 1 to 1,000,000"):
            PvtConfig.from_dict(content)


def test_overrides_are_validated_like_everything_else():
    with pytest.raises(ValueError, match="depths"):
        PvtConfig.from_dict(PvtConfig().to_dict(), depths=[1, 1])
    assert PvtConfig.from_dict(PvtConfig().to_dict(), out_features=["stage2"]).out_indices == [1]
