"""
The contract that every model class of the package keeps. A new class's test is about ten lines:

    class MyModelTest(ModelContract, unittest.TestCase):
        model_class = MyModel
        def make_config(self, **overrides): ...
        def output_tensor(self, outputs): ...

Each test compares with something the model under test did not produce: another attention implementation, a reload, a
single-sample run, the uncompiled model, statistics of the initialisation.
"""

import copy
import math
import tempfile

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pvt_hf import PvtConfig


# Two orders of summation of the same fp32 numbers; outputs of the tiny random models are of order 1.
FP32_TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}

TINY = {
    "image_size": 64,
    "hidden_sizes": [16, 32, 80, 128],
    "num_attention_heads": [1, 2, 5, 8],
    "depths": [1, 2, 1, 1],
    "mlp_ratios": [4, 4, 2, 2],
}


def tiny_pvt_config(**overrides) -> PvtConfig:
    """A four-stage PVT of 0.4 M parameters with the paper's strides, reduction ratios and heads."""
    return PvtConfig(**{**TINY, "num_labels": 5, **overrides})


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values in every parameter, norm gains and biases too: nothing may hide behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = name.endswith("weight") and parameter.ndim == 1
            fan_in = parameter[0].numel() if parameter.ndim > 1 and "embeddings" not in name else 25
            parameter.copy_((1.0 if is_gain else 0.0) + noise * (0.1 if parameter.ndim == 1 else fan_in**-0.5))
    return model


def random_images(batch: int, height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """(batch, channels, height, width), standard normal."""
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


class ModelContract:
    """Mixed into a `unittest.TestCase`; the class attributes and the two methods below say what is tested."""

    model_class: type
    image_sizes = ((64, 64), (32, 32), (96, 64), (45, 101), (128, 160))
    has_labels = False
    # Below it the last grid can have a side of 1, a size that the exporter specialises on.
    export_minimum = 64

    def make_config(self, **overrides):
        raise NotImplementedError

    def output_tensors(self, outputs) -> list[torch.Tensor]:
        """The tensors that a user reads from `outputs`."""
        raise NotImplementedError

    def make_labels(self, batch: int):
        """Labels for `batch` images of 64x64."""
        raise NotImplementedError

    def make_model(self, **overrides):
        torch.manual_seed(0)
        return randomize(self.model_class(self.make_config(**overrides))).eval()

    @torch.no_grad()
    def run_model(self, model, pixel_values, **kwargs) -> list[torch.Tensor]:
        return self.output_tensors(model(pixel_values, **kwargs))

    def assert_same(self, actual, expected, **tolerance):
        assert len(actual) == len(expected) > 0
        for one, other in zip(actual, expected):
            torch.testing.assert_close(one, other, **(tolerance or FP32_TOLERANCE))

    # Saving and loading

    def test_save_and_load_is_bit_exact(self):
        model, images = self.make_model(), random_images(2, 64, 64)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            reloaded, info = self.model_class.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, reloaded.state_dict()[name]), name
        self.assert_same(self.run_model(reloaded.eval(), images), self.run_model(model, images), atol=0, rtol=0)

    def test_save_after_channels_last(self):
        model, images = self.make_model(), random_images(2, 64, 64)
        expected = self.run_model(model, images)
        model.to(memory_format=torch.channels_last)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            reloaded = self.model_class.from_pretrained(folder).eval()
        self.assert_same(self.run_model(reloaded, images), expected, atol=0, rtol=0)
        self.assert_same(self.run_model(model, images.to(memory_format=torch.channels_last)), expected)

    def test_config_survives_a_round_trip(self):
        config = self.make_config()
        again = type(config).from_dict(config.to_dict())
        assert again.to_dict() == config.to_dict()

    # Initialisation

    def test_initialisation_statistics(self):
        torch.manual_seed(0)
        model = self.model_class(self.make_config())
        checked = set()
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                assert torch.all(module.weight == 1) and torch.all(module.bias == 0)
            elif isinstance(module, nn.Linear) and module.weight.numel() > 500:
                # 500 samples: the sample deviation is within 4 / sqrt(2 * 500) = 13 % of the true one
                assert abs(module.weight.std().item() / 0.02 - 1) < 0.13
                assert module.bias is None or torch.all(module.bias == 0)
            else:
                continue
            checked.add(type(module))
        assert checked >= {nn.LayerNorm, nn.Linear}

    def test_missing_weights_are_initialised_as_in_a_new_model(self):
        """`from_pretrained` builds on the meta device and initialises what the file lacks on another path."""
        model = self.make_model()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, state_dict={name: model.state_dict()[name] for name in [self.any_key(model)]})
            reloaded = self.model_class.from_pretrained(folder)
        fresh = self.model_class(self.make_config())
        for (name, parameter), other in zip(reloaded.named_parameters(), fresh.parameters()):
            if parameter.numel() < 500 or name == self.any_key(model):
                continue
            assert abs(parameter.std() - other.std()) <= 0.15 * other.std() + 1e-6, name

    def any_key(self, model) -> str:
        return next(name for name in model.state_dict() if name.endswith("projection.weight"))

    # Attention

    def test_eager_and_sdpa_agree(self):
        images = random_images(2, 96, 64)
        model = self.make_model()
        expected = None
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            actual = self.run_model(model, images)
            expected = expected or actual
            self.assert_same(actual, expected)

    def test_sdpa_is_the_default(self):
        assert self.make_model().config._attn_implementation == "sdpa"

    def test_every_attention_implementation_is_dispatched(self):
        """flash and flex need a GPU for their numbers; that the model calls them, and how, is recorded here."""
        model, images = self.make_model(), random_images(1, 64, 64)
        expected, sdpa = self.run_model(model, images), ALL_ATTENTION_FUNCTIONS["sdpa"]
        for implementation in ("sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"):
            calls = []

            def record(module, query, key, value, attention_mask=None, calls=calls, **kwargs):
                calls.append((query.shape, key.shape, kwargs["scaling"], module.is_causal))
                return sdpa(module, query, key, value, attention_mask, **kwargs)

            original = ALL_ATTENTION_FUNCTIONS[implementation]
            ALL_ATTENTION_FUNCTIONS[implementation] = record
            try:
                for module in model.modules():  # set_attn_implementation would ask for the kernels' packages
                    if hasattr(module, "config"):
                        module.config._attn_implementation = implementation
                actual = self.run_model(model, images)
            finally:
                ALL_ATTENTION_FUNCTIONS[implementation] = original
            assert calls, implementation
            for query, key, scaling, is_causal in calls:
                assert query[0] == key[0] and query[1] == key[1] and query[3] == key[3]
                assert math.isclose(scaling, query[3] ** -0.5) and not is_causal
            self.assert_same(actual, expected)

    def test_attentions_are_true_maps_under_every_implementation(self):
        images = random_images(1, 64, 96)
        for implementation in ("eager", "sdpa"):
            model = self.make_model(attn_implementation=implementation)
            with torch.no_grad():
                outputs = model(images, output_attentions=True)
            assert outputs.attentions
            for attention in outputs.attentions:
                assert attention.ndim == 4
                torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
            assert model(images).attentions is None

    # Training

    def loss_of(self, model, images, labels):
        if self.has_labels:
            return model(images, labels=labels).loss
        return sum(tensor.square().mean() for tensor in self.output_tensors(model(images)))

    def gradients(self, model, images, labels):
        model.zero_grad()
        self.loss_of(model, images, labels).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def test_every_parameter_has_a_gradient(self):
        """DistributedDataParallel stops at a parameter without one."""
        model = self.make_model().train()
        labels = self.make_labels(2) if self.has_labels else None
        names = self.gradients(model, random_images(2, 64, 64), labels).keys()
        assert names == dict(model.named_parameters()).keys(), dict(model.named_parameters()).keys() - names

    def test_gradient_checkpointing_gives_equal_gradients(self):
        images, labels = random_images(2, 64, 64), self.make_labels(2) if self.has_labels else None
        model = self.make_model().train()
        torch.manual_seed(0)
        expected = self.gradients(model, images, labels)
        for reentrant in (False, True):
            other = copy.deepcopy(model)
            other.activation_checkpointing_enable({"use_reentrant": reentrant})
            recomputed = [m for m in other.modules() if getattr(m, "gradient_checkpointing", False)]
            assert recomputed
            torch.manual_seed(0)
            inputs = images.clone().requires_grad_()  # the reentrant form needs an input with a gradient
            actual = self.gradients(other, inputs, labels)
            assert actual.keys() == expected.keys()
            for name in expected:
                torch.testing.assert_close(actual[name], expected[name], **FP32_TOLERANCE)

    # Shapes and sizes

    def test_sizes_other_than_the_construction_size(self):
        model = self.make_model()
        for height, width in self.image_sizes:
            for tensor in self.run_model(model, random_images(1, height, width)):
                assert torch.isfinite(tensor).all()

    def test_a_batch_gives_what_single_images_give(self):
        model, images = self.make_model(), random_images(3, 64, 96)
        batched = self.run_model(model, images)
        for index in range(3):
            single = self.run_model(model, images[index : index + 1])
            self.assert_same([tensor[index : index + 1] for tensor in batched], single)

    def test_return_dict_false(self):
        model, images = self.make_model(), random_images(1, 64, 64)
        with torch.no_grad():
            outputs, values = model(images), model(images, return_dict=False)
        assert isinstance(values, tuple) and len(values) == len(outputs.to_tuple())

    def test_bad_pixel_values(self):
        model = self.make_model()
        for pixel_values, word in (
            (torch.zeros(1, 3, 31, 64), "31x64"),
            (torch.zeros(1, 3, 64, 31), "64x31"),
            (torch.zeros(1, 4, 64, 64), "num_channels"),
            (torch.zeros(3, 64, 64), r"\(3, 64, 64\)"),
            (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8"),
        ):
            with pytest.raises(ValueError, match=word):
                model(pixel_values)

    # Precision

    def test_half_precision(self):
        images = random_images(2, 64, 64)
        expected = self.run_model(self.make_model(), images)
        for dtype in (torch.bfloat16, torch.float16):
            actual = self.run_model(self.make_model().to(dtype), images)  # fp32 images are cast
            for one, other in zip(actual, expected):
                assert one.dtype == dtype
                # bf16 keeps 8 bits: a few percent of the output's own scale after some ten layers
                assert (one.float() - other).abs().max() < 0.06 * other.abs().max()

    def test_autocast(self):
        model, images = self.make_model(), random_images(2, 64, 64)
        expected = self.run_model(model, images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = self.run_model(model, images)
        for one, other in zip(actual, expected):
            assert (one.float() - other).abs().max() < 0.06 * other.abs().max()

    # Compilation. backend="eager" runs what dynamo captured: fullgraph raises at any graph break.

    def compare_compiled(self, backend: str, dynamics: tuple[bool, ...]):
        model = self.make_model()
        sizes = [(64, 64), (96, 64), (64, 128), (101, 77)]
        for dynamic in dynamics:
            torch.compiler.reset()
            compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=backend)
            for height, width in sizes[1:] if dynamic else sizes[:2]:
                images = random_images(2, height, width)
                self.assert_same(self.run_model(compiled, images), self.run_model(model, images))

    def test_compiles_without_graph_breaks(self):
        self.compare_compiled("eager", dynamics=(False, True))

    @pytest.mark.slow
    def test_compiles_with_inductor(self):
        """Generating code takes a minute or more, so it is done once: for all sizes."""
        self.compare_compiled("inductor", dynamics=(True,))

    def test_compiled_training_step(self):
        torch.compiler.reset()
        model = self.make_model().train()
        images, labels = random_images(2, 64, 64), self.make_labels(2) if self.has_labels else None
        expected = self.gradients(model, images, labels)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        model.zero_grad()
        self.loss_of(compiled, images, labels).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], **FP32_TOLERANCE)

    def test_exports_with_dynamic_batch_height_and_width(self):
        model = self.make_model()
        minimum = self.export_minimum
        dims = {
            0: torch.export.Dim("batch", min=1, max=64),
            2: torch.export.Dim("height", min=minimum, max=4096),
            3: torch.export.Dim("width", min=minimum, max=4096),
        }
        example = (random_images(2, minimum, minimum + 32),)
        program = torch.export.export(model, example, dynamic_shapes={"pixel_values": dims})
        exported = program.module()
        for batch, height, width in ((1, 0, 0), (3, 0, 96), (2, 37, 13)):
            images = random_images(batch, minimum + height, minimum + width)
            self.assert_same(self.run_model(exported, images), self.run_model(model, images))

    # Placement

    def test_no_layer_is_split_between_devices(self):
        from accelerate import infer_auto_device_map
        from accelerate.utils import compute_module_sizes

        model = self.make_model()
        total = compute_module_sizes(model)[""]
        device_map = infer_auto_device_map(
            model, max_memory={"cpu": total // 2, "disk": total * 2}, no_split_module_classes=model._no_split_modules
        )
        assert set(device_map.values()) == {"cpu", "disk"}, device_map
        for name, module in model.named_modules():
            if type(module).__name__ in model._no_split_modules:
                assert not any(key.startswith(name + ".") for key in device_map), name

    def test_offloaded_model_computes_the_same(self):
        from accelerate.utils import compute_module_sizes

        model, images = self.make_model(), random_images(1, 64, 64)
        total = compute_module_sizes(model)[""]
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as offload:
            model.save_pretrained(folder)
            split = self.model_class.from_pretrained(
                folder,
                device_map="auto",
                max_memory={"cpu": total // 2, "disk": total * 2},
                offload_folder=offload,
            ).eval()
            assert set(split.hf_device_map.values()) == {"cpu", "disk"}, split.hf_device_map
            self.assert_same(self.run_model(split, images), self.run_model(model, images))
