"""
The training transform has the parts of the paper's recipe.

    pytest tests/tasks/classification/test_transforms.py
"""

import numpy as np
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import InterpolationMode

from pvt_hf.tasks.classification.transforms import ClassificationTransform

from ...support.classification_files import picture


def test_the_transform_has_the_papers_parts():
    transform = ClassificationTransform((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).steps
    parts = {type(part).__name__: part for part in transform.transforms}
    crop = parts["RandomResizedCropAndInterpolation"]
    assert (crop.scale, crop.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3)) and crop.interpolation == InterpolationMode.BICUBIC
    assert parts["RandomHorizontalFlip"].p == 0.5 and "ColorJitter" not in parts
    augment, erasing = parts["RandAugment"], parts["RandomErasing"]
    assert isinstance(augment, RandAugment) and augment.num_layers == 2
    operation = augment.ops[0]
    assert operation.magnitude == 9 and operation.magnitude_std == 0.5
    assert operation.hparams["translate_const"] == 100 and operation.hparams["img_mean"] == (124, 116, 104)
    assert isinstance(erasing, RandomErasing) and erasing.probability == 0.25 and erasing.rand_color is False
    assert erasing.per_pixel and (erasing.min_area, erasing.max_area) == (0.02, 1 / 3) and erasing.max_count == 1
    names = [type(part).__name__ for part in transform.transforms]
    assert names.index("Normalize") < names.index("RandomErasing")


def test_posterizing_to_no_bits_gives_black_as_in_the_official_training():
    """Pillow 13 refuses 0 bits, for which timm asks at the largest magnitude."""
    transform = ClassificationTransform((0.5,) * 3, (0.5,) * 3, image_size=(8, 8))
    (augment,) = [step for step in transform.steps.transforms if isinstance(step, RandAugment)]
    (operation,) = [each for each in augment.ops if each.name == "PosterizeIncreasing"]
    operation.prob, operation.magnitude, operation.magnitude_std = 1.0, 10, 0
    assert operation(picture(0)).getextrema() == ((0, 0),) * 3
    operation.magnitude = 5  # 4 - 2 bits
    assert set(np.unique(operation(picture(0)))) == {0, 64, 128, 192}
