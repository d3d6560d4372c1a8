"""
The contract of a model with a backbone and a head. A new head's test, beside its row in heads.py:

    class TestMyHead(SegmenterContract):
        family = "my_head"
        refused_stages = [["stage4"]]

What is special to the head comes after it: a comparison with an implementation of its paper, its loss, its figures.
"""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel, ResNetConfig

from pvt_hf import PvtBackbone, PvtConfig, PvtForImageClassification, load_pretrained_backbone
from pvt_hf.families import load

from .common import random_images, randomize, tiny_pvt_config
from .heads import (
    BACKBONES,
    HEADS,
    boxes_only,
    no_objects,
    random_labels,
    random_objects,
    randomize_head,
    tiny_head_config,
)
from .model_contract import ModelContract
from .references import resize_bilinear


class HeadContract(ModelContract):
    """`family` is a row of `pvt_hf/families.py`; the fields of its small model are in heads.py."""

    family: str
    has_labels = True
    backbone_name = "backbone"  # of the submodule
    # Fields that the contract's models have besides those of heads.py
    overrides: dict[str, object] = {}
    # Stages of a backbone that the head cannot read
    refused_stages: list[list[str]] = [["stage4"]]

    @property
    def model_class(self) -> type:
        return load(HEADS[self.family].models[0].path)

    @property
    def config_class(self) -> type:
        return load(HEADS[self.family].config)

    @property
    def auto_classes(self) -> list[type]:
        return [getattr(transformers, name) for name in HEADS[self.family].models[0].auto_classes]

    @property
    def stages(self) -> list[str]:
        return list(HEADS[self.family].stages)

    @property
    def compile_overrides(self) -> dict[str, object]:
        return {"backbone_config": tiny_pvt_config(out_features=self.stages, depths=[1, 1, 1, 1])}

    def make_config(self, **overrides):
        return tiny_head_config(self.family, **{**self.overrides, **overrides})

    def make_model(self, **overrides):
        torch.manual_seed(0)
        return randomize_head(self.model_class(self.make_config(**overrides)))

    def make_labels(self, batch, height=64, width=64):
        return random_labels(self.family, batch, height, width)

    def backbone_of(self, model):
        return model.get_submodule(self.backbone_name)

    # `make test` compiles the classifier only. Heads are exported by tests/export/test_export.py.
    test_exports_with_dynamic_batch_height_and_width = None

    @pytest.mark.slow
    def test_compiles_without_graph_breaks(self):
        super().test_compiles_without_graph_breaks()

    @pytest.mark.slow
    def test_compiled_training_step(self):
        super().test_compiled_training_step()

    # Backbones

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_every_backbone_trains_and_survives_saving(self, backbone, tmp_path):
        model = self.make_model(backbone_config=BACKBONES[backbone](self.stages))
        for height, width in ((64, 96), (75, 110)):  # the second does not divide by 32: grids are rounded down
            images = random_images(2, height, width)
            assert all(torch.isfinite(tensor).all() for tensor in self.run_model(model.eval(), images))
            model.train().zero_grad()
            model(images, labels=self.make_labels(2, height, width)).loss.backward()
            for name, parameter in model.named_parameters():
                # Swin has norms for stages that are not returned, a ResNet stages beyond them and frozen ones
                if backbone == "pvt" or not name.startswith(f"{self.backbone_name}."):
                    assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            trained = [one for one in self.backbone_of(model).parameters() if one.requires_grad]
            assert not trained or any(one.grad is not None and one.grad.any() for one in trained)
        model.eval().save_pretrained(tmp_path)
        expected = self.run_model(model, images)
        for loading_class in (self.model_class, *self.auto_classes):
            reloaded, info = loading_class.from_pretrained(tmp_path, output_loading_info=True)
            assert type(reloaded) is self.model_class and not any(map(len, info.values())), info
            assert type(self.backbone_of(reloaded)) is type(self.backbone_of(model))
        self.assert_same(self.run_model(reloaded.eval(), images), expected, atol=0, rtol=0)

    @pytest.mark.parametrize("backbone", ["pvt", "resnet"])
    def test_a_batch_without_images_is_refused(self, backbone):
        model = self.make_model(backbone_config=BACKBONES[backbone](self.stages))
        for mode in (True, False):
            with pytest.raises(ValueError, match=r"pixel_values has no image \(shape \(0, 3, 64, 64\)\)"):
                model.train(mode)(torch.zeros(0, 3, 64, 64))

    def test_load_pretrained_backbone(self, tmp_path):
        """It fills the backbone, with resized position tables, and leaves the head alone."""
        classifier = randomize(PvtForImageClassification(tiny_pvt_config(image_size=96)), seed=3)
        classifier.save_pretrained(tmp_path)
        model = self.make_model()
        before = copy.deepcopy(model.state_dict())
        report = load_pretrained_backbone(model, tmp_path)
        assert not report.missing and len(report.resized) == 4 and len(report.loaded) > 20
        backbone = self.backbone_of(model)
        for key in report.loaded:
            assert torch.equal(backbone.state_dict()[key], classifier.state_dict()[f"pvt.{key}"]), key
        for key, tensor in model.state_dict().items():
            if not key.startswith(f"{self.backbone_name}."):
                assert torch.equal(tensor, before[key]), key

    def test_hidden_states_and_attentions_are_the_backbones(self):
        model, images = self.make_model(), random_images(1, 64, 64)
        with torch.no_grad():
            outputs = model(images, output_hidden_states=True, output_attentions=True)
            expected = model.backbone(images, output_hidden_states=True, output_attentions=True)
            without = model(images)
        for key in ("hidden_states", "attentions"):
            assert len(outputs[key]) == len(expected[key]) > 0
            assert all(torch.equal(one, other) for one, other in zip(outputs[key], expected[key]))
            assert getattr(without, key) is None

    def test_the_configuration_asks_for_hidden_states_and_attentions(self):
        """Set on the configuration, or saved in it. The call has the last word."""
        images = random_images(1, 64, 64)
        config = self.make_config(output_hidden_states=True, output_attentions=True, attn_implementation="eager")
        model = self.model_class(type(config).from_dict(config.to_dict(), attn_implementation="eager")).eval()
        with torch.no_grad():
            outputs = model(images)
            expected = model.backbone(images, output_hidden_states=True, output_attentions=True)
            without = model(images, output_hidden_states=False, output_attentions=False)
            model.config.output_hidden_states = False
            maps_only = model(images)
        for key in ("hidden_states", "attentions"):
            assert len(outputs[key]) == len(expected[key]) > 0
            assert all(torch.equal(one, other) for one, other in zip(outputs[key], expected[key]))
            assert getattr(without, key) is None
        assert maps_only.hidden_states is None and maps_only.attentions is not None

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_hidden_states_by_index(self, backbone):
        model, images = self.make_model(backbone_config=BACKBONES[backbone](self.stages)), random_images(1, 64, 64)
        with torch.no_grad():
            everything = model(images, output_hidden_states=True).hidden_states
            for indices in (-1, [0, -2], [1], -100):
                chosen = model(images, output_hidden_states=indices).hidden_states
                wanted = {i % len(everything) for i in ([indices] if isinstance(indices, int) else indices) if i > -99}
                for index, (one, other) in enumerate(zip(chosen, everything, strict=True)):
                    assert torch.equal(one, other) if index in wanted else one is None

    def test_backbones_with_other_feature_maps_than_the_head_reads(self):
        for stages in self.refused_stages:
            for name in ("pvt", "resnet"):
                with pytest.raises(ValueError, match=f"feature map.*{name}.*out_features"):
                    self.model_class(self.config_class(backbone_config=BACKBONES[name](stages)))

    def test_all_weights_are_initialised_on_every_path(self, monkeypatch):
        """
        In the constructor, and where a file lacks every weight. As Transformers' own tests do it: with the same random
        numbers for every module, both give the same bits.
        """
        original = PreTrainedModel._initialize_weights

        def seeded(model, *args, **kwargs):
            torch.manual_seed(0)
            original(model, *args, **kwargs)

        monkeypatch.setattr(PreTrainedModel, "_initialize_weights", seeded)
        built = self.model_class(self.make_config()).state_dict()
        opened = self.model_class.from_pretrained(None, config=self.make_config(), state_dict={}).state_dict()
        assert built.keys() == opened.keys()
        assert all(torch.equal(tensor, opened[name]) for name, tensor in built.items())

    def test_traced_program_at_other_sizes(self):
        model = self.make_model(**self.compile_overrides)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # about checks of the example's shape
            traced = torch.jit.trace(model, (random_images(1, 64, 96),), strict=False, check_trace=False)
        for batch, height, width in ((1, 96, 64), (3, 128, 160), (2, 75, 110)):
            images = random_images(batch, height, width)
            outputs = SimpleNamespace(**traced(images))  # a traced program returns a dict
            self.assert_same(self.output_tensors(outputs), self.run_model(model, images))

    # Configuration

    def test_a_pvt_backbone_may_come_as_anything(self):
        """As ours, as the native class, as a dictionary of either, or without a model type: it always becomes ours."""
        ours = tiny_pvt_config(out_features=self.stages)
        fields = ours.to_dict()
        native = transformers.PvtConfig(**{key: fields[key] for key in ("hidden_sizes", "depths", "mlp_ratios")})
        for backbone_config in (ours, fields, {k: v for k, v in fields.items() if k != "model_type"}):
            config = self.config_class(backbone_config=backbone_config)
            assert type(config.backbone_config) is PvtConfig and config.backbone_config.to_dict() == fields
        for backbone_config in (native, {**native.to_dict(), "out_features": self.stages}):
            config = self.config_class(backbone_config=backbone_config)
            assert type(config.backbone_config) is PvtConfig
            # the native class has one epsilon for all norms
            assert config.backbone_config.reduction_layer_norm_eps == config.backbone_config.layer_norm_eps == 1e-6
        assert type(self.backbone_of(self.model_class(config))) is PvtBackbone

    def test_config_files_keep_everything(self, tmp_path):
        backbones = [
            tiny_pvt_config(out_features=self.stages, layer_norm_eps=1e-4, reduction_layer_norm_eps=1e-3),
            tiny_pvt_config(out_features=self.stages, drop_path_rate=0.1, image_size=[64, 96]),
            ResNetConfig(out_features=self.stages, layer_type="basic"),
        ]
        labels = [{}, {"num_labels": 2}, {"id2label": {0: "sky", 1: "road", 2: "car"}}]
        for overrides in (*labels, *({"backbone_config": one} for one in backbones), self.make_config().to_dict()):
            config = self.config_class(**overrides)
            config.save_pretrained(tmp_path)
            for again in (self.config_class.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
                assert type(again) is self.config_class
                assert type(again.backbone_config) is type(config.backbone_config)
                assert again.backbone_config.to_dict() == config.backbone_config.to_dict()
                whole, expected = again.to_dict(), config.to_dict()
                for key in ("backbone_config", "_name_or_path"):
                    whole.pop(key, None), expected.pop(key, None)
                assert whole == expected
                assert again.num_labels == len(again.id2label) == overrides.get("num_labels", config.num_labels)

    def test_a_config_file_does_not_list_the_default_classes_of_the_backbone(self, tmp_path):
        self.config_class(num_labels=3).save_pretrained(tmp_path)
        assert (tmp_path / "config.json").read_text().count("LABEL_") == 6
        named = PvtConfig(out_features=self.stages, id2label={0: "sky", 1: "road", 2: "car"})
        self.config_class(backbone_config=named).save_pretrained(tmp_path)
        assert self.config_class.from_pretrained(tmp_path).backbone_config.id2label == named.id2label

    def test_an_absurd_number_of_classes_is_refused(self):
        with pytest.raises(ValueError, match="num_labels must be from 1 to 1,000,000"):
            self.config_class(num_labels=10**9)

    def test_backbones_that_cannot_be(self):
        for backbone_config, words in (
            ({"model_type": "pvt_v9"}, "backbone_config.*pvt_v9"),
            ({"model_type": "pvt", "depths": [2, 2]}, "depths"),
        ):
            with pytest.raises(ValueError, match=words):
                self.config_class(backbone_config=backbone_config)

    def test_other_labels(self, tmp_path):
        """As in JSON, with text for numbers: given to the constructor, and when loading."""
        names, numbers = {"0": "cat", "1": "dog", "2": "cow"}, {0: "cat", 1: "dog", 2: "cow"}
        self.make_model().save_pretrained(tmp_path)
        loaded = self.model_class.from_pretrained(tmp_path, id2label=names, ignore_mismatched_sizes=True)
        built = self.model_class(self.make_config(id2label=names))
        auto = AutoConfig.from_pretrained(tmp_path, id2label=names, label2id={"cat": 0, "dog": 1, "cow": 2})
        for config in (loaded.config, built.config, auto):
            assert config.id2label == numbers and config.num_labels == config.to_dict()["num_labels"] == 3
        assert auto.label2id == {"cat": 0, "dog": 1, "cow": 2} and "LABEL_5" not in (loaded.config.label2id or {})
        shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (loaded, built)]
        assert shapes[0] == shapes[1]

    def test_another_number_of_labels_when_loading(self, tmp_path):
        self.make_model().save_pretrained(tmp_path)
        model = self.model_class.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
        assert model.config.num_labels == 3 and len(model.config.id2label) == 3
        expected = self.make_model(num_labels=3).state_dict()
        assert {name: t.shape for name, t in model.state_dict().items()} == {n: t.shape for n, t in expected.items()}


class SegmenterContract(HeadContract):
    """Semantic segmentation: `logits` (batch, num_labels, height / 4, width / 4) and label maps of any size."""

    def output_tensors(self, outputs):
        return [outputs.logits]

    def test_logits_are_at_the_size_of_the_finest_map(self):
        model = self.make_model()
        for height, width in ((64, 96), (75, 110)):
            images = random_images(2, height, width)
            with torch.no_grad():
                logits, maps = model(images).logits, model.backbone(images).feature_maps
            assert logits.shape == (2, 6, *maps[0].shape[-2:]) == (2, 6, height // 4, width // 4)

    def test_loss_is_the_mean_over_labelled_pixels(self):
        """Logits are resized to the labels, which may have the original image's size; label 255 does not count."""
        model, images = self.make_model(), random_images(2, 64, 96)
        for height, width in ((64, 96), (150, 200), (50, 40)):
            labels = self.make_labels(2, height, width)
            outputs = model(images, labels=labels)
            log_probabilities = resize_bilinear(outputs.logits.double(), height, width).log_softmax(1)
            total, count = 0.0, 0
            for image, label_map in zip(log_probabilities, labels):
                for label in range(6):
                    chosen = image[label][label_map == label]
                    total, count = total - chosen.sum(), count + chosen.numel()
            assert 0 < count < labels.numel()
            torch.testing.assert_close(outputs.loss.double(), total / count, atol=1e-5, rtol=1e-5)  # fp32
        with pytest.raises(ValueError, match="7, 9.*0 to 5"):
            model(images, labels=labels.where(labels != 3, 9).where(labels != 2, 7))

    def test_labels_that_are_all_ignored_give_zero_and_a_gradient(self):
        model = self.make_model().train()
        loss = model(random_images(2, 64, 64), labels=torch.full((2, 64, 64), 255)).loss
        assert loss == 0
        loss.backward()
        assert all(p.grad is not None and torch.all(p.grad == 0) for p in model.parameters())


class DetectorContract(HeadContract):
    """Object detection: labels with boxes (cxcywh from 0 to 1) and, for some heads, masks."""

    def test_a_batch_without_objects_trains_every_parameter(self):
        model, labels = self.make_model().train(), [no_objects(), no_objects()]
        loss = model(random_images(2, 64, 64), labels=labels if HEADS[self.family].masks else boxes_only(labels)).loss
        loss.backward()
        assert torch.isfinite(loss) and all(parameter.grad is not None for parameter in model.parameters())

    def test_extreme_boxes(self):
        """Boxes of one pixel, without a width, a thousand in one image: all train. Wrong labels are refused."""
        one_pixel = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 1 / 64, 1 / 64]])}
        flat = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.0, 0.2]])}
        many = boxes_only(random_objects(1, 64, 64, count=1000))[0]
        model = self.make_model().train()
        for labels in ([one_pixel, flat], [many, one_pixel], [many, boxes_only([no_objects()])[0]]):
            model.zero_grad()
            loss = model(random_images(2, 64, 64), labels=labels).loss
            loss.backward()
            assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters())
        for wrong, words in (
            ({"class_labels": torch.tensor([6])}, "num_labels 6"),
            ({"boxes": torch.tensor([[32.0, 32, 10, 10]])}, "from 0 to 1"),
        ):
            with pytest.raises(ValueError, match=words):
                model(random_images(1, 64, 64), labels=[{**one_pixel, **wrong}])

    def test_a_narrow_image(self):
        tensors = self.run_model(self.make_model(), random_images(1, 33, 2000))
        assert all(torch.isfinite(tensor).all() for tensor in tensors)

    least_progress = 0.9  # loss of the last steps below, relative to that of the first ones
    training_overrides: dict[str, object] = {}

    def test_a_hundred_steps_stay_finite(self):
        """On random scenes, where objects are bright rectangles. Some batches have none, some have tiny ones."""
        torch.manual_seed(0)
        model = self.model_class(self.make_config(**self.training_overrides)).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for step in range(100):
            labels = [no_objects()] * 2 if step % 10 == 9 else random_objects(2, 64, 64, seed=step)
            if step % 7 == 3:
                for label in labels:
                    label["boxes"] = label["boxes"] * torch.tensor([1, 1, 0.03, 0.03])
                    label["masks"] = torch.zeros_like(label["masks"])
            images = random_images(2, 64, 64, seed=step) * 0.1
            images = images + torch.stack([label["masks"].float().sum(0).clamp(max=1) for label in labels])[:, None]
            loss = model(images, labels=labels if HEADS[self.family].masks else boxes_only(labels)).loss
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            assert torch.isfinite(loss) and torch.isfinite(norm), (step, loss, norm)
            if step % 10 != 9 and step % 7 != 3:
                losses.append(loss.item())
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
        assert sum(losses[-20:]) < self.least_progress * sum(losses[:20])
