"""An ART estimator as a torch module, and back: ranges, preprocessing, labels, modes.

Everything that this package must know about ART's `PyTorchClassifier` is here.
"""

from .estimators import check_certified, check_classifier, overrides_predict, warn_of_own_predict
from .layout import to_channels_last
from .module import EstimatorModule
from .networks import copy_deeply, copy_network, device_of, preserve, preserved
from .outputs import (
    check_outputs,
    class_logits,
    loss_of,
    outputs_are_probabilities,
    predict_outputs,
    random_inputs,
)
from .plain_inputs import read_bounds
from .plain_networks import (
    as_estimator,
    check_no_conventions,
    copy_to,
    is_plain,
    name_network,
    named_model,
    rename_model,
)
from .preprocessing import (
    augmentations,
    preprocessing_modules,
    preprocessing_operations,
    standardisation,
    standardisation_of,
)
from .ranges import (
    RANGE_TOLERANCE,
    InputRange,
    bounded_range,
    check_threat,
    clip_range,
    input_range,
    is_bounded,
    read_clip_values,
)
from .straight_through import StraightThrough, clip_above
from .tensors import compact_images, image_tensor, label_tensor, plain_tensor

__all__ = [
    "RANGE_TOLERANCE",
    "EstimatorModule",
    "InputRange",
    "StraightThrough",
    "as_estimator",
    "augmentations",
    "bounded_range",
    "check_certified",
    "check_classifier",
    "check_no_conventions",
    "check_outputs",
    "check_threat",
    "class_logits",
    "clip_above",
    "clip_range",
    "compact_images",
    "copy_deeply",
    "copy_network",
    "copy_to",
    "device_of",
    "image_tensor",
    "input_range",
    "is_bounded",
    "is_plain",
    "label_tensor",
    "loss_of",
    "name_network",
    "named_model",
    "outputs_are_probabilities",
    "overrides_predict",
    "plain_tensor",
    "predict_outputs",
    "preprocessing_modules",
    "preprocessing_operations",
    "preserve",
    "preserved",
    "random_inputs",
    "read_bounds",
    "read_clip_values",
    "rename_model",
    "standardisation",
    "standardisation_of",
    "to_channels_last",
    "warn_of_own_predict",
]
