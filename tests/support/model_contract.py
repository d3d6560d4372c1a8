"""
The contract that every model class of the package keeps. A new class's test:

    class TestMyModel(ModelContract):
        model_class = MyModel

        def make_config(self, **overrides): ...
        def output_tensors(self, outputs): ...

Each test compares with something the model under test did not produce: another attention implementation, a reload, a
single-sample run, the uncompiled model, statistics of the initialisation.

`HeadContract` in head_contract.py adds what a model with a backbone and a head has to do.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .common import FP32_TOLERANCE, random_images, randomize


class ModelContract:
    """Base of a test class. Its attributes and first methods say what is tested. Set a test to None to leave it out."""

    model_class: type
    image_sizes = ((64, 64), (32, 32), (96, 64), (45, 101), (128, 160))
    has_labels = False
    # The smallest exported height and width. Below 64 the last grid can have a side of 1, which the exporter
    # specialises on.
    export_minimum = 64
    # Fields of the configuration for compiling and exporting, whose time grows with the number of blocks
    compile_overrides: dict[str, object] = {}

    def make_config(self, **overrides):
        """A small configuration. Each test class has its own, and `output_tensors`."""
        raise NotImplementedError

    def output_tensors(self, outputs) -> list[torch.Tensor]:
        """The tensors that a user reads from `outputs`."""
        raise NotImplementedError

    def make_labels(self, batch: int):
        """Labels for `batch` images of 64x64; None for a model without a loss."""
        return None

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

    def test_save_and_load_is_bit_exact(self, tmp_path):
        model, images = self.make_model(), random_images(2, 64, 64)
        model.save_pretrained(tmp_path)
        reloaded, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, reloaded.state_dict()[name]), name
        self.assert_same(self.run_model(reloaded.eval(), images), self.run_model(model, images), atol=0, rtol=0)

    def test_save_after_channels_last(self, tmp_path):
        model, images = self.make_model(), random_images(2, 64, 64)
        expected = self.run_model(model, images)
        model.to(memory_format=torch.channels_last)
        model.save_pretrained(tmp_path)
        reloaded = self.model_class.from_pretrained(tmp_path).eval()
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

    def test_missing_weights_are_initialised_as_in_a_new_model(self, tmp_path):
        """`from_pretrained` builds on the meta device and initialises what the file lacks on another path."""
        model = self.make_model()
        key = next(name for name in model.state_dict() if name.endswith("projection.weight"))
        model.save_pretrained(tmp_path, state_dict={key: model.state_dict()[key]})
        reloaded = self.model_class.from_pretrained(tmp_path)
        fresh = self.model_class(self.make_config())
        for (name, parameter), other in zip(reloaded.named_parameters(), fresh.parameters()):
            if parameter.numel() < 500 or name == key:
                continue
            assert abs(parameter.std() - other.std()) <= 0.15 * other.std() + 1e-6, name

    # Attention

    def test_eager_and_sdpa_agree(self):
        images, model = random_images(2, 96, 64), self.make_model()
        assert model.config._attn_implementation == "sdpa"  # the default
        expected = self.run_model(model, images)
        model.set_attn_implementation("eager")
        self.assert_same(self.run_model(model, images), expected)

    def test_every_attention_implementation_is_dispatched(self):
        """flash and flex need a GPU. Here they are replaced by sdpa and their calls are recorded."""
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
                maps = model(images, output_attentions=True).attentions
                assert model(images).attentions is None
            assert maps
            for attention in maps:
                assert attention.ndim == 4
                torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))

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
        names = self.gradients(model, random_images(2, 64, 64), self.make_labels(2)).keys()
        assert names == dict(model.named_parameters()).keys(), dict(model.named_parameters()).keys() - names

    def test_gradient_checkpointing_gives_equal_gradients(self):
        images, labels = random_images(2, 64, 64), self.make_labels(2)
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

    # Compilation. `fullgraph` raises at any graph break; "aot_eager" captures the backward pass too. Generating code is
    # slow, so only the classifier's test does it.

    def compare_compiled(self, backend):
        """At sizes that one graph has to serve. They are divisible by 32; other sizes may need another graph."""
        torch.compiler.reset()
        model, least = self.make_model(**self.compile_overrides), self.export_minimum
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
        for height, width in ((least + 32, least), (least, least + 64)):
            images = random_images(2, height, width)
            self.assert_same(self.run_model(compiled, images), self.run_model(model, images))

    def test_compiles_without_graph_breaks(self):
        counter = CompileCounter()  # runs what was captured
        self.compare_compiled(counter)
        assert counter.frame_count == 1

    def test_compiled_training_step(self):
        """At a fixed size."""
        torch.compiler.reset()
        model = self.make_model(**self.compile_overrides).train()
        images, labels = random_images(2, 64, 64), self.make_labels(2)
        expected = self.gradients(model, images, labels)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        model.zero_grad()
        self.loss_of(compiled, images, labels).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], **FP32_TOLERANCE)

    def test_exports_with_dynamic_batch_height_and_width(self):
        model = self.make_model(**self.compile_overrides)
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

    def test_offloaded_model_computes_the_same(self, tmp_path):
        from accelerate.utils import compute_module_sizes

        model, images = self.make_model(), random_images(1, 64, 64)
        total = compute_module_sizes(model)[""]
        model.save_pretrained(tmp_path / "model")
        split = self.model_class.from_pretrained(
            tmp_path / "model",
            device_map="auto",
            max_memory={"cpu": total // 2, "disk": total * 2},
            offload_folder=tmp_path / "offload",
        ).eval()
        assert set(split.hf_device_map.values()) == {"cpu", "disk"}, split.hf_device_map
        self.assert_same(self.run_model(split, images), self.run_model(model, images))
