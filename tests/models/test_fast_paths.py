"""
The fast paths for CPUs compute what the modules compute, and step aside where the modules must be called: the MLP in
blocks of tokens (`modeling_fast_mlp.py`), and patch projections as matrix products (`modeling_fast_patches.py`).

    pytest tests/models/test_fast_paths.py
"""

import copy
import importlib.util
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pvt_hf import PvtBackbone, PvtForImageClassification
from pvt_hf.models import modeling_fast_mlp, modeling_pvt
from pvt_hf.weights.opening import weights_digest

from ..support.clean_process import run_python
from ..support.common import FP32_TOLERANCE, random_images, randomize, tiny_pvt_config
from ..support.distributions import uv
from ..support.pages import block_with


NUM_BLOCKS = 5  # of the tiny model
OPEN_QUANTISED = """
import json, torch
from safetensors.torch import load_file
from pvt_hf.models import modeling_pvt
from pvt_hf.weights.opening import open_complete, weights_digest

calls, add_mlp = [], modeling_pvt.add_mlp
modeling_pvt.add_mlp = lambda *arguments: calls.append(1) or add_mlp(*arguments)
opened, before = open_complete(PvtForImageClassification, "classifier-torchao"), load_file("before.safetensors")
with torch.no_grad():
    difference = (opened(before["images"]).logits - before["logits"]).norm() / before["logits"].norm()
print(json.dumps({"calls": len(calls), "difference": difference.item(), "digest": weights_digest(opened)}))
"""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """
    In the first stage of a 64x64 image, seven or more blocks, the last one smaller. No size is too small.
    """
    monkeypatch.setattr(modeling_fast_mlp, "MIN_BYTES_WITH_GRADIENTS", 0)
    monkeypatch.setattr(modeling_fast_mlp, "MIN_FUSED_PRODUCT", 0)
    monkeypatch.setattr(modeling_fast_mlp, "BYTES_PER_THREAD", 37 * 64 * 4 // torch.get_num_threads())


@pytest.fixture
def calls(monkeypatch):
    """The number of tokens in each call of the MLP's fast path."""
    counted = []

    def add_mlp(hidden_states, *rest):
        counted.append(hidden_states.shape[:2].numel())
        return modeling_fast_mlp.add_mlp(hidden_states, *rest)

    monkeypatch.setattr(modeling_pvt, "add_mlp", add_mlp)
    return counted


@pytest.fixture
def products(monkeypatch):
    """The kernel of each patch projection that was a matrix product."""
    counted, multiply_patches = [], modeling_pvt.multiply_patches

    def call(feature_map, projection):
        counted.append(projection.kernel_size)
        return multiply_patches(feature_map, projection)

    monkeypatch.setattr(modeling_pvt, "multiply_patches", call)
    return counted


@pytest.fixture
def plain(monkeypatch):
    """Calls a function with the modules instead of the fast paths."""

    def call(function, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(modeling_pvt, "may_be_fast", lambda tensor: False)
            patch.setattr(modeling_pvt, "can_multiply_patches", lambda *args: False)
            return function(*args, **kwargs)

    return call


def make_model(cls=PvtForImageClassification, **overrides):
    return randomize(cls(tiny_pvt_config(**overrides))).eval()


@torch.no_grad()
def logits_of(model, images):
    return model(images).logits


def gradients_of(model, images):
    """Gradients of the images and all parameters, after drop path with the same random numbers every time."""
    torch.manual_seed(0)
    model.zero_grad()
    images = images.clone().requires_grad_()
    model(images, labels=torch.arange(len(images)) % 5).loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"images": images.grad, **found}


def assert_equal_gradients(actual, expected):
    """To 1e-5 of the largest value of each. (That of the keys' bias is zero but for rounding.)"""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (actual[name] - gradient).abs().max() <= 1e-5 * max(gradient.abs().max(), 0.01), name


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (3, 64, 64), (1, 45, 101), (3, 33, 70)])
def test_equals_the_modules(batch, height, width, is_fused, calls, products, plain, monkeypatch):
    if is_fused and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch was built without oneDNN")
    monkeypatch.setattr(modeling_fast_mlp, "HAS_FUSED_LINEAR", is_fused)
    images = random_images(batch, height, width)
    for cls, read in ((PvtForImageClassification, lambda y: [y.logits]), (PvtBackbone, lambda y: y.feature_maps)):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            model, images = make_model(cls).to(dtype), images.to(dtype)
            calls.clear()
            products.clear()
            with torch.no_grad():
                actual, taken = read(model(images)), (len(calls), len(products))
                expected = read(plain(model, images))
            assert taken == (len(calls), len(products)) and len(calls) == NUM_BLOCKS
            assert len(products) == 8  # four patch projections, and the reductions of the first four blocks
            for one, other in zip(actual, expected):
                if dtype == torch.bfloat16:  # blocks change which of two neighbours a sum is rounded to: 2**-8
                    assert (one - other).abs().max() <= 0.02 * other.abs().max()
                else:
                    torch.testing.assert_close(one, other, **FP32_TOLERANCE)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch was built without oneDNN")
def test_small_products_are_not_fused_with_gelu(monkeypatch):
    model, images = make_model(), random_images(1, 64, 64)
    monkeypatch.setattr(modeling_fast_mlp, "HAS_FUSED_LINEAR", True)
    monkeypatch.setattr(modeling_fast_mlp, "BYTES_PER_THREAD", 2**30)
    products = [
        # 16x16 patches in the first stage, half of the rows and columns in each of the others
        16**2 // 4**stage * block.mlp.dense1.weight.numel()
        for stage, blocks in enumerate(model.pvt.encoder.block)
        for block in blocks
    ]
    for limit in {0, max(products), max(products) + 1}:
        monkeypatch.setattr(modeling_fast_mlp, "MIN_FUSED_PRODUCT", limit)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            logits_of(model, images)
        fused = sum(event.name == "mkldnn::_linear_pointwise" for event in profiler.events())
        assert fused == 2 * sum(product >= limit for product in products)


@pytest.mark.parametrize(("channels", "hidden_size"), [(64, 512), (512, 2048)])
def test_is_as_exact_as_the_modules_at_the_papers_widths(channels, hidden_size):
    """Against float64, with values up to some tens, where an approximate GELU would show."""
    torch.manual_seed(0)
    tokens = 3 * torch.randn(200, channels)
    shapes = [(channels,), (channels,), (hidden_size, channels), (hidden_size,), (channels, hidden_size), (channels,)]
    parameters = [torch.randn(shape) * (3 if len(shape) == 1 else shape[1] ** -0.5) for shape in shapes]

    def modules(tokens, norm_weight, norm_bias, weight_1, bias_1, weight_2, bias_2):
        normed = nn.functional.layer_norm(tokens, (channels,), norm_weight, norm_bias, 1e-6)
        hidden = nn.functional.gelu(nn.functional.linear(normed, weight_1, bias_1))
        return tokens + nn.functional.linear(hidden, weight_2, bias_2)

    exact = modules(tokens.double(), *(parameter.double() for parameter in parameters))
    actual = modeling_fast_mlp.run_blocks(tokens, None, 1e-6, parameters, out=torch.empty_like(tokens))
    error = (modules(tokens, *parameters) - exact).abs().max()
    assert 0 < error < 1e-3 and (actual - exact).abs().max() <= 4 * error


def test_infinities_and_nans_are_not_hidden():
    for value in (float("nan"), float("inf")):
        model, images = make_model(), random_images(2, 64, 64)
        images[1, 0, 3, 3] = value
        logits = logits_of(model, images)
        assert logits[0].isfinite().all() and not logits[1].isfinite().any()


def test_channels_last_weights(products, plain):
    """Then the weight of a patch projection is multiplied as it lies in memory."""
    model, images = make_model(), random_images(2, 45, 101)
    expected = plain(logits_of, model, images)
    model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(logits_of(model, images), expected, **FP32_TOLERANCE)
    assert products


# Gradients


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (3, 45, 101)])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_gradients_equal_those_of_the_modules(batch, height, width, drop_path_rate, calls, plain):
    model, images = make_model(drop_path_rate=drop_path_rate).train(), random_images(batch, height, width)
    actual = gradients_of(model, images)
    assert len(calls) == NUM_BLOCKS and len(actual) == 1 + len(list(model.parameters()))
    assert_equal_gradients(actual, plain(gradients_of, model, images))


def test_projections_of_small_feature_maps_are_products_with_gradients_too(products, plain):
    """PyTorch's convolution would copy a weight that is larger than its input three times in a step."""
    model = make_model(sequence_reduction_ratios=[8, 4, 2, 1]).train()
    wide = model.pvt.encoder.block[0][0].attention.self.sequence_reduction  # 16 to 16 channels in 8x8 pixels
    for batch, is_product in ((1, True), (16, False)):
        images = random_images(batch, 32, 32)
        products.clear()
        actual = gradients_of(model, images)
        assert (wide.kernel_size in products) == is_product
        assert_equal_gradients(actual, plain(gradients_of, model, images))
    products.clear()
    gradients_of(model.to(memory_format=torch.channels_last), random_images(1, 32, 32))
    assert not products  # there, both would have to be copied


def test_frozen_weights_get_no_gradient(calls, plain):
    model, images = make_model().train(), random_images(2, 64, 64)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("dense1.weight" not in name and "layer_norm_2.bias" not in name)
    actual = gradients_of(model, images)
    assert len(calls) == NUM_BLOCKS and not any("dense1.weight" in name for name in actual)
    assert_equal_gradients(actual, plain(gradients_of, model, images))


def test_first_and_second_derivatives_against_finite_differences():
    torch.manual_seed(0)
    shapes = [(5, 3), (3,), (3,), (7, 3), (7,), (3, 7), (3,)]
    tokens, *parameters = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    for scale in (None, torch.tensor([[0.0], [2.0], [1.0], [2.0], [0.0]], dtype=torch.float64)):
        inputs = (tokens, scale, 1e-6, *parameters)
        assert torch.autograd.gradcheck(modeling_fast_mlp.AddMlp.apply, inputs)
        assert torch.autograd.gradgradcheck(modeling_fast_mlp.AddMlp.apply, inputs)


def test_a_small_activation_is_kept(calls, monkeypatch):
    """Computing it again would cost more than keeping it."""
    model, images = make_model().train(), random_images(2, 64, 64)
    monkeypatch.setattr(modeling_fast_mlp, "MIN_BYTES_WITH_GRADIENTS", 2 * 256 * 64 * 4)  # that of the first stage
    gradients_of(model, images)
    assert calls == [2 * 256]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant, calls, plain):
    model, images = make_model(drop_path_rate=0.5).train(), random_images(2, 64, 64)
    expected = plain(gradients_of, model, images)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    calls.clear()
    assert_equal_gradients(gradients_of(model, images), expected)
    assert len(calls) == 2 * NUM_BLOCKS


def test_keeps_no_hidden_activation_for_the_backward_pass(plain):
    model, images = make_model().train(), random_images(2, 64, 64)

    def kept():
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(images, labels=torch.tensor([0, 1])).loss  # keeps the storages alive
        assert loss.requires_grad
        return sum(sizes.values()) - sum(parameter.nbytes for parameter in model.parameters())

    # of the plain path, the hidden activations and what GELU keeps are more than half
    assert kept() < 0.6 * plain(kept)


# Where it steps aside, or must not be noticed


def test_hooks_on_every_submodule_see_what_they_see_without_it(calls, plain):
    """The tensors are held and compared later, so that a change of one in place would show, too."""
    model, images = make_model(depths=[1, 1, 1, 1]), random_images(2, 64, 64)
    modules = {name: module for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)}
    for name, module in modules.items():
        seen = []
        hook = module.register_forward_hook(lambda _, inputs, output, seen=seen: seen.append((inputs, output)))
        logits = logits_of(model, images)
        expected_logits = plain(logits_of, model, images)
        hook.remove()
        torch.testing.assert_close(logits, expected_logits, **FP32_TOLERANCE)
        assert len(seen) in (2, 4), name  # drop path is called twice by each
        actual, expected = seen[: len(seen) // 2], seen[len(seen) // 2 :]
        for one, other in zip(actual, expected):
            leaves, others = (torch.utils._pytree.tree_leaves(each) for each in (one, other))
            for leaf, counterpart in zip(leaves, others, strict=True):
                if isinstance(leaf, torch.Tensor):
                    torch.testing.assert_close(leaf, counterpart, **FP32_TOLERANCE)
    # seven modules of each of the four blocks are called by the plain path only
    assert len(calls) == 4 * len(modules) - 4 * 7


def tensors_in(tree):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.mark.filterwarnings("ignore:For backward hooks to be called")
@pytest.mark.parametrize(
    "register", ["register_forward_pre_hook", "register_full_backward_hook", "register_full_backward_pre_hook"]
)
def test_other_hooks_in_training_see_what_they_see_without_it(register, calls, plain):
    model, images = make_model(depths=[1, 1, 1, 1]).train(), random_images(2, 64, 64)
    modules = {name: module for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)}
    for name, module in modules.items():
        seen = []
        hook = getattr(module, register)(lambda _, *values, seen=seen: seen.append(tensors_in(values)))
        gradients_of(model, images)
        half = len(seen)
        plain(gradients_of, model, images)
        hook.remove()
        # backward hooks are not called for what returns a dataclass
        assert len(seen) == 2 * half and (half > 0 or name in ("", "pvt")), name
        for one, other in zip(seen[:half], seen[half:]):
            for value, expected in zip(one, other, strict=True):
                # gradients are small: relative to the largest of the tensor, as in `assert_equal_gradients`
                assert (value - expected).abs().max() <= 1e-4 * max(expected.abs().max(), 0.01), name
    assert calls


def test_hidden_states_and_attentions(calls, plain):
    model, images = make_model(), random_images(2, 64, 64)
    with torch.no_grad():
        actual = model(images, output_hidden_states=True, output_attentions=True)
        expected = plain(model, images, output_hidden_states=True, output_attentions=True)
        again = model(images, output_hidden_states=True)  # the hooks that Transformers has left do not stop it
    assert len(calls) == 2 * NUM_BLOCKS
    for one, other in zip(again.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one, other, **FP32_TOLERANCE)
    for name in ("hidden_states", "attentions"):
        for one, other in zip(actual[name], expected[name], strict=True):
            torch.testing.assert_close(one, other, **FP32_TOLERANCE)
    torch.testing.assert_close(again.logits, expected.logits, **FP32_TOLERANCE)


class Doubled(nn.Module):
    """An adapter by hand."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states):
        return 2 * self.inner(hidden_states)


class QuietLinear(nn.Linear):
    def forward(self, hidden_states):
        return super().forward(hidden_states) / 2


def change_forward(layer):
    """As Accelerate's hooks for offloaded weights do."""
    forward = layer.mlp.dense1.forward
    layer.mlp.dense1.forward = lambda hidden_states: 2 * forward(hidden_states)


def subclass(layer):
    layer.mlp.dense2.__class__ = QuietLinear


CHANGES = {
    "wrapped": lambda layer: setattr(layer.mlp, "dense2", Doubled(layer.mlp.dense2)),
    "norm": lambda layer: setattr(layer, "layer_norm_2", nn.RMSNorm(layer.layer_norm_2.normalized_shape)),
    "forward": change_forward,
    "subclass": subclass,
    "activation": lambda layer: setattr(layer.mlp, "activation", nn.ReLU()),
    "mlp": lambda layer: setattr(layer, "mlp", Doubled(layer.mlp)),
    "parametrized": lambda layer: parametrize.register_parametrization(layer.mlp.dense1, "weight", nn.Tanh()),
    "pruned": lambda layer: prune.l1_unstructured(layer.mlp.dense1, "weight", amount=0.5),
    "no bias": lambda layer: setattr(layer.mlp.dense1, "bias", None),
    "quantised": lambda layer: torch.ao.quantization.quantize_dynamic(layer.mlp, {nn.Linear}, inplace=True),
}


@pytest.mark.filterwarnings("ignore:.*quantization.*:DeprecationWarning")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_layers_are_called(change, calls, plain):
    model, images = make_model(), random_images(2, 64, 64)
    before = logits_of(model, images)
    change(model.pvt.encoder.block[1][0])
    calls.clear()
    after = logits_of(model, images)
    assert len(calls) == NUM_BLOCKS - 1
    torch.testing.assert_close(after, plain(logits_of, model, images), **FP32_TOLERANCE)
    assert (after - before).abs().max() > 1e-4


PROJECTION_CHANGES = {
    "wrapped": lambda block: setattr(
        block.attention.self, "sequence_reduction", nn.Sequential(block.attention.self.sequence_reduction, nn.Tanh())
    ),
    "parametrized": lambda block: parametrize.register_parametrization(
        block.attention.self.sequence_reduction, "weight", nn.Tanh()
    ),
    "padding": lambda block: setattr(block.attention.self.sequence_reduction, "padding", (1, 1)),
}


@pytest.mark.parametrize("change", PROJECTION_CHANGES.values(), ids=PROJECTION_CHANGES)
def test_changed_projections_are_called(change, products, plain):
    model, images = make_model(), random_images(3, 64, 64)
    before = logits_of(model, images)
    change(model.pvt.encoder.block[1][0])
    products.clear()
    after = logits_of(model, images)
    assert len(products) == 7
    torch.testing.assert_close(after, plain(logits_of, model, images), **FP32_TOLERANCE)
    assert (after - before).abs().max() > 1e-4


@pytest.mark.slow
def test_weights_that_torchao_quantised(tmp_path):
    """
    The example of docs/deployment.md: 8 bits move the logits by about a hundredth; the file shrinks. In a process of
    its own: where torchao is installed, Transformers imports it in every process.
    """
    uv("pip", "install", "--no-deps", "--target", tmp_path / "site", "torchao>=0.17")
    model, images = make_model(), random_images(2, 64, 64)
    model.save_pretrained(tmp_path / "path/to/model")
    save_file({"images": images, "logits": logits_of(model, images)}, tmp_path / "before.safetensors")
    code = block_with("torchao.quantization", "deployment.md") + OPEN_QUANTISED
    found = json.loads(run_python(code, cwd=tmp_path, environment={"PYTHONPATH": str(tmp_path / "site")}).stdout)
    assert found["calls"] == 0 and 0 < found["difference"] < 0.05
    assert found["digest"] != weights_digest(model)
    small, whole = (tmp_path / name / "model.safetensors" for name in ("classifier-torchao", "path/to/model"))
    assert small.stat().st_size < 0.7 * whole.stat().st_size


def test_lora_on_the_mlp(calls, plain):
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["dense1", "dense2"], init_lora_weights=False)
    model, images = get_peft_model(make_model(), config).train(), random_images(2, 64, 64)
    actual = gradients_of(model, images)
    assert not calls and sum("lora_" in name for name in actual) == NUM_BLOCKS * 2 * 2
    assert_equal_gradients(actual, plain(gradients_of, model, images))


def test_dropout_is_drawn_as_without_it(calls, plain):
    model, images = make_model(hidden_dropout_prob=0.3).train(), random_images(2, 64, 64)
    assert_equal_gradients(gradients_of(model, images), plain(gradients_of, model, images))
    assert not calls
    logits_of(model.eval(), images)
    assert len(calls) == NUM_BLOCKS


def test_half_precision_training_keeps_the_modules(calls, products):
    model, images = make_model(sequence_reduction_ratios=[8, 4, 2, 1]).train(), random_images(1, 32, 32)
    gradients_of(model, images)
    assert calls and products
    calls.clear()
    products.clear()
    gradients_of(model.to(torch.bfloat16), images.to(torch.bfloat16))
    assert not calls and not products


def test_autocast_keeps_the_modules(calls, plain):
    model, images = make_model(), random_images(2, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(logits_of(model, images), plain(logits_of, model, images))
    assert not calls


def call_exported(model, images):
    return torch.export.export(model, (images,)).module()(images).logits


def call_traced(model, images):
    return torch.jit.trace(model, (images,), strict=False, check_trace=False)(images)["logits"]


def call_counted(model, images):
    with FlopCounterMode(display=False) as counter:
        logits = model(images).logits
    assert counter.get_total_flops() > 1e6
    return logits


def call_vmapped(model, images):
    return torch.func.vmap(lambda image: model(image[None]).logits[0])(images)


def call_compiled_vmapped(model, images):
    return torch.compile(torch.func.vmap(lambda image: model(image[None]).logits[0]), backend="eager")(images)


def call_with_tangents(model, images):
    with forward_ad.dual_level():
        model.set_attn_implementation("eager")  # SDPA has no forward-mode derivative on a CPU
        return forward_ad.unpack_dual(model(forward_ad.make_dual(images, images)).logits).primal


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "call", [call_exported, call_traced, call_counted, call_vmapped, call_compiled_vmapped, call_with_tangents]
)
def test_programs_that_record_or_transform_get_the_modules(call, calls, plain):
    model, images = make_model(depths=[1, 1, 1, 1]), random_images(2, 64, 64)
    expected = plain(logits_of, model, images)
    with torch.no_grad() if call is not call_with_tangents else torch.enable_grad():
        actual = call(model, images)
    assert not calls
    torch.testing.assert_close(actual, expected, **FP32_TOLERANCE)
    logits_of(model, images)  # it is fast again
    assert len(calls) == 4


def test_a_compiled_graph_calls_the_mlp_in_blocks(calls, products, plain):
    """Also after the weights have changed, and after the same code was loaded once more, as remote code is."""
    model = make_model(depths=[1, 1, 1, 1])
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for height in (64, 96):
        images = random_images(2, height, 64)
        torch.testing.assert_close(logits_of(compiled, images), plain(logits_of, model, images), **FP32_TOLERANCE)
    assert len(calls) == 2 * 4 and not products  # counted when it is compiled, for each size
    with torch.no_grad():
        model.pvt.encoder.block[0][0].mlp.dense1.weight.mul_(1.5)
    spec = importlib.util.spec_from_file_location("pvt_hf.models.loaded_twice", modeling_fast_mlp.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    actual = logits_of(compiled, images)
    torch.testing.assert_close(actual, plain(logits_of, model, images), **FP32_TOLERANCE)


def test_a_compiled_graph_with_gradients_or_hooks_calls_the_modules(calls, plain):
    model, images = make_model(depths=[1, 1, 1, 1]).train(), random_images(2, 64, 64)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    actual = gradients_of(compiled, images)
    assert not calls
    expected = plain(gradients_of, model, images)
    assert_equal_gradients({name.removeprefix("_orig_mod."): value for name, value in actual.items()}, expected)
    model.pvt.encoder.block[0][0].mlp.dense1.register_forward_hook(lambda module, inputs, output: output * 2)
    torch.testing.assert_close(logits_of(compiled, images), plain(logits_of, model, images), **FP32_TOLERANCE)
    assert len(calls) == 3


def test_copies_and_weights_that_change_after_the_first_call(calls, plain):
    """Nothing is remembered from one call to the next."""
    model, images = make_model(), random_images(2, 64, 64)
    logits_of(model, images)
    other = copy.deepcopy(model)
    layer = other.pvt.encoder.block[0][0]

    def scale_in_place():
        layer.mlp.dense1.weight.mul_(1.5)

    def write_to_data():
        layer.mlp.dense2.weight.data[:] = layer.mlp.dense2.weight.flip(0)

    def replace():
        layer.layer_norm_2.weight = nn.Parameter(layer.layer_norm_2.weight + 1)

    def load():
        other.load_state_dict({name: value * 1.1 for name, value in other.state_dict().items()})

    previous = logits_of(other, images)
    for change in (scale_in_place, write_to_data, replace, load):
        with torch.no_grad():
            change()
        actual = logits_of(other, images)
        torch.testing.assert_close(actual, plain(logits_of, other, images), **FP32_TOLERANCE)
        assert (actual - previous).abs().max() > 1e-3
        previous = actual
    torch.testing.assert_close(logits_of(model, images), plain(logits_of, model, images), **FP32_TOLERANCE)


# Memory


def peak_bytes(model, images):
    """The most memory that tensors take during a call, by the profiler's record of every allocation."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        model(images)
    allocated = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak


def test_memory_is_linear_in_the_pixels_and_small(monkeypatch, plain):
    monkeypatch.setattr(modeling_fast_mlp, "BYTES_PER_THREAD", 2**16)
    model = make_model(PvtBackbone, out_features=["stage4"], mlp_ratios=[8, 8, 4, 4])
    small, large = random_images(1, 256, 256), random_images(1, 512, 1024)
    peaks = [peak_bytes(model, images) for images in (small, large)]
    assert 7 < peaks[1] / peaks[0] < 9  # eight times the pixels
    assert peaks[1] < 0.5 * plain(peak_bytes, model, large)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    assert peaks[1] < 0.25 * plain(peak_bytes, eager, large)


def test_gradients_in_batches_and_under_autocast():
    """`is_grads_batched`, which jacobians use, and a backward pass inside of autocast."""
    torch.manual_seed(0)
    config = tiny_pvt_config()
    size = config.hidden_sizes[0]
    norm, mlp = nn.LayerNorm(size), modeling_pvt.PvtFFN(config, 0).eval()
    found = {}
    for name in ("fast", "modules"):
        tokens = torch.randn(1, 6, size, generator=torch.Generator().manual_seed(1)).requires_grad_()
        run = modeling_fast_mlp.add_mlp if name == "fast" else lambda x, _, norm, mlp: x + mlp(norm(x))
        inputs = [tokens, mlp.dense1.weight, norm.weight]
        result = run(tokens, None, norm, mlp)
        directions = torch.randn(3, 1, 6, size, generator=torch.Generator().manual_seed(2))
        batched = torch.autograd.grad(result, inputs, directions, is_grads_batched=True, retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "fast"):  # the modules' gradients are coarse in it
            plain = torch.autograd.grad(result, inputs, directions[0])
        found[name] = [*batched, *plain]
    for ours, theirs in zip(found["fast"], found["modules"], strict=True):
        torch.testing.assert_close(ours, theirs, **FP32_TOLERANCE)


@pytest.mark.parametrize("owner", [nn.Linear, nn.LayerNorm, nn.Conv2d, modeling_pvt.PvtFFN, modeling_pvt.PvtDropPath])
def test_a_forward_that_is_patched_on_its_class_is_called(owner, monkeypatch):
    model, images = PvtForImageClassification(tiny_pvt_config()).eval(), random_images(1, 64, 64)
    seen, forward = [], owner.forward
    monkeypatch.setattr(owner, "forward", lambda self, *inputs: (seen.append(1), forward(self, *inputs))[1])
    with torch.no_grad():
        model(images)
        called = len(seen)
    assert called >= sum(type(module) is owner for module in model.modules())


def test_a_mode_for_functions_sees_the_modules_functions(calls):
    seen = []

    class Record(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    model, images = PvtForImageClassification(tiny_pvt_config()).eval(), random_images(1, 64, 64)
    with torch.no_grad(), Record():
        model(images)
    assert seen.count(nn.functional.gelu) == NUM_BLOCKS and not calls
    with torch.no_grad(), torch.device("cpu"):  # a mode too, which changes no operation
        model(images)
    assert len(calls) == NUM_BLOCKS
