"""Replaced layers in Hugging Face models, which transformers saves and loads through its quantizer hook.

    from basis_search import huggingface          # registers the quantizer "basis_search"
    bs.apply_(model, plan)
    huggingface.save_pretrained(model, directory)
    model = AutoModel.from_pretrained(directory)  # in any process that has imported basis_search.huggingface

config.json holds the structures under quantization_config; the tensors are among the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from basis_search.errors import BadInput
from basis_search.families import family as family_named
from basis_search.families.protocol import spec_from_json, spec_to_json
from basis_search.replacement.export import replace_layers, structured_layers
from basis_search.replacement.layer_config import LARGEST_FEATURES
from basis_search.replacement.structured_linear import StructuredLinear

METHOD = "basis_search"
SCHEMA_VERSION = 1
DTYPES = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


@register_quantization_config(METHOD)
class BasisSearchConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The replaced layers as config.json describes them.

    Args:
        layers: of each its names in the model, in_features, out_features, batch, family, spec, dtype, preferred kernel,
            and dtype and shape of each tensor.
        schema_version: of this description.

    Raises:
        BadInput: a newer version, or a layer that `describe` would not have written.
    """

    def __init__(self, layers: Sequence[Mapping[str, Any]] = (), schema_version: int = SCHEMA_VERSION, **unknown: Any):
        self.quant_method = METHOD
        self.schema_version = schema_version
        if not isinstance(schema_version, int) or schema_version > SCHEMA_VERSION:
            raise BadInput(
                f"the model's quantization_config has schema version {schema_version!r}, but this basis_search reads "
                f"up to {SCHEMA_VERSION}; install a newer basis_search"
            )
        for layer in layers:
            _check(layer)
        self.layers = [dict(layer) for layer in layers]


def _check(layer: Any) -> None:
    """Raises BadInput unless `describe` may have written it."""
    expected = {"names": list, "in_features": int, "out_features": int, "batch": int, "family": str, "spec": dict,
                "dtype": str, "tensors": dict}  # fmt: skip
    for key, kind in expected.items():
        if not isinstance(layer, Mapping) or not isinstance(layer.get(key), kind) or isinstance(layer[key], bool):
            raise BadInput(f"a layer in the model's quantization_config has no {key} that is a {kind.__name__}")
    shapes = [shape for _, shape in layer["tensors"].values()]
    sizes = [layer["in_features"], layer["out_features"], layer["batch"]]
    flat = [size for shape in shapes for size in shape]
    if any(not 1 <= size <= LARGEST_FEATURES for size in sizes) or any(
        not isinstance(size, int) or not 0 <= size <= LARGEST_FEATURES for size in flat
    ):
        raise BadInput(f"a size of the layer {layer['names']} is not within 1 and {LARGEST_FEATURES}")
    for dtype in (layer["dtype"], *(dtype for dtype, _ in layer["tensors"].values())):
        if dtype not in DTYPES:
            raise BadInput(f"the layer {layer['names']} has a tensor of dtype {dtype!r}; known are {', '.join(DTYPES)}")


def describe(names: Sequence[str], module: StructuredLinear) -> dict[str, Any]:
    """One layer's entry in config.json."""
    return {
        "names": list(names),
        "in_features": module.in_features,
        "out_features": module.out_features,
        "batch": module.batch,
        "family": module.family,
        "spec": spec_to_json(module.spec),
        "dtype": _name(module.dtype),
        "kernel": module.preferred,
        "tensors": {name: [_name(t.dtype), list(t.shape)] for name, t in module.params.items()},
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _empty(layer: Mapping[str, Any]) -> StructuredLinear:
    """The module on the meta device; the checkpoint provides its values."""
    params = {
        name: torch.empty(shape, dtype=DTYPES[dtype], device="meta")
        for name, (dtype, shape) in layer["tensors"].items()
    }
    kernel = layer.get("kernel")
    return StructuredLinear(
        layer["in_features"], layer["out_features"], layer["family"],
        spec_from_json(family_named(layer["family"]), layer["spec"]), params, batch=layer["batch"],
        prefer=kernel if isinstance(kernel, str) else None, dtype=DTYPES[layer["dtype"]],
    )  # fmt: skip


@register_quantizer(METHOD)
class BasisSearchQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts structured layers into the empty model before transformers loads the tensors."""

    requires_calibration = True  # structures are fitted to inputs, not made on loading

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        replace_layers(model, {tuple(layer["names"]): _empty(layer) for layer in self.quantization_config.layers})
        for module in list(model.modules()):
            replaced = any(isinstance(child, StructuredLinear) for child in module.children())
            if replaced and next(module.parameters(recurse=False), None) is None:
                # Some models initialise the `weight` of a module's children; structured layers have no such parameter.
                module._is_hf_initialized = True  # type: ignore[assignment]
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        for module, names in structured_layers(model).items():
            linear = module.to_linear()
            for name in names:
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, linear)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def attach(model: PreTrainedModel) -> PreTrainedModel:
    """Registers a model's replaced layers in its config, so that its save_pretrained and push_to_hub include them.

    Raises:
        BadInput: no layer is replaced.
    """
    found = structured_layers(model)
    if not found:
        raise BadInput("the model has no StructuredLinear; replace layers with apply_ first")
    config = BasisSearchConfig([describe(names, module) for module, names in found.items()])
    model.hf_quantizer = BasisSearchQuantizer(config)
    model.config.quantization_config = config
    model.is_quantized, model.quantization_method = True, METHOD
    return model


def save_pretrained(model: PreTrainedModel, directory: str | Path, **kwargs: Any) -> None:
    """`attach`, then the model's save_pretrained(directory, **kwargs)."""
    attach(model).save_pretrained(str(directory), **kwargs)
