"""Counts parameters and FLOPs as the paper's framework does, and rounds them as its tables do."""

from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal

from torch import nn

from pvt_hf import PvtConfig


def as_printed(number: float) -> str:
    """
    With the paper's one decimal, rounded from the two that its framework's counter prints. (This differs from rounding
    once only for the 15.446 M of ResNet18 with Semantic FPN.)
    """
    counted = Decimal(number / 1e6 if number < 1e9 else number / 1e9)
    return str(counted.quantize(Decimal("0.01"), ROUND_HALF_UP).quantize(Decimal("0.1"), ROUND_HALF_UP))


def count_operations(model: nn.Module, run: Callable[[], object], unnamed_relus: tuple[nn.Module, ...] = ()) -> int:
    """
    Multiply-adds of convolutions (with bias) and linear layers while `run()` runs `model`. As in the paper's counter,
    ReLU and pooling count one operation per element. Attention is counted by [`attention_operations`].

    Args:
        unnamed_relus: modules whose output goes through a ReLU that is no module.
    """
    total = 0

    def count(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output.numel() * (module.weight[0].numel() + (module.bias is not None))
        elif isinstance(module, nn.ConvTranspose2d):
            total += inputs[0].numel() * module.weight[0].numel() + output.numel() * (module.bias is not None)
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, nn.ReLU):
            total += output.numel()
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            total += inputs[0].numel()
        if module in unnamed_relus:
            total += output.numel()

    handles = [module.register_forward_hook(count) for module in model.modules()]
    run()
    for handle in handles:
        handle.remove()
    return total


def attention_operations(config: PvtConfig, height: int, width: int) -> int:
    """2 h w (h / R) (w / R) C per block of a PVT."""
    return sum(
        depth * 2 * rows * columns * (rows // ratio) * (columns // ratio) * channels
        for (rows, columns), depth, ratio, channels in zip(
            config.grid_sizes(height, width), config.depths, config.sequence_reduction_ratios, config.hidden_sizes
        )
    )


def parameters_but_frozen(model: nn.Module) -> int:
    """
    Parameters of a detector without the frozen ones, which the paper does not count: stem and first stage of a ResNet
    (of timm or Transformers). A PVT has none.
    """
    prefixes = ("_backbone.conv1.", "_backbone.bn1.", "_backbone.layer1.", "embedder.", "encoder.stages.0.")
    frozen = [parameter for name, parameter in model.backbone.named_parameters() if name.startswith(prefixes)]
    assert bool(frozen) == (model.config.backbone_config.model_type != "pvt")
    return model.num_parameters() - sum(parameter.numel() for parameter in frozen)
