"""LayerConfig: the JSON file of one replaced layer, checked field by field before anything is built from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from basis_search.errors import BadInput
from basis_search.files import check_document, is_file_name

LAYER_FORMAT = "basis_search.layer"
SCHEMA_VERSION = 1
MAX_BYTES = 2**20
"""Of a layer's JSON file and of an exported directory's index."""
LARGEST_FEATURES, LONGEST_SPEC = 2**24, 1024


@dataclass(frozen=True)
class LayerConfig:
    """One layer of an exported directory, without its tensors.

    Attributes:
        name: in the model.
        in_features, out_features, bias, dtype, batch: of the layer.
        family, spec: the structure; the family is looked up by name in this package's own list.
        tensors: the safetensors file's name, in the same directory.
        sha256: of that file.
        aliases: other names of the same layer in the model.
        evaluation: the search's, as JSON, or None.
        provenance: of the file, for readers; never interpreted.
    """

    name: str
    in_features: int
    out_features: int
    bias: bool
    dtype: str
    batch: int
    family: str
    spec: Mapping[str, Any]
    tensors: str
    sha256: str
    evaluation: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    aliases: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        return {"format": LAYER_FORMAT, "schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, document: Any, path: Path) -> LayerConfig:
        """Reads a JSON document and checks it against the schema.

        Raises:
            BadInput: another format, a newer version, or a field that is missing, of a wrong type or beyond its limit.
        """
        check_document(document, LAYER_FORMAT, SCHEMA_VERSION, path)
        expected: dict[str, tuple[type, ...]] = {
            "name": (str,), "in_features": (int,), "out_features": (int,), "bias": (bool,), "dtype": (str,),
            "batch": (int,), "family": (str,), "spec": (dict,), "tensors": (str,), "sha256": (str,),
            "evaluation": (dict, type(None)), "provenance": (dict,), "aliases": (list,),
        }  # fmt: skip
        document = {"aliases": [], **document}  # the first files of 0.1.0 have none
        values: dict[str, Any] = {}
        for key, kinds in expected.items():
            if key not in document:
                raise BadInput(f"{path} lacks the field {key!r}")
            value = document[key]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise BadInput(f"{path}: {key} is {_short(value)}, but {kinds[0].__name__} is needed")
            values[key] = value
        for key in ("in_features", "out_features", "batch"):
            if not 1 <= values[key] <= LARGEST_FEATURES:
                raise BadInput(f"{path}: {key} is {_short(values[key])}, but 1 to {LARGEST_FEATURES} is allowed")
        if not all(isinstance(alias, str) for alias in values["aliases"]):
            raise BadInput(f"{path}: aliases is {_short(values['aliases'])}, but a list of names is needed")
        if len(spec := json.dumps(values["spec"])) > LONGEST_SPEC:
            raise BadInput(
                f"{path}: spec is {spec[:60]}..., {len(spec)} characters, but at most {LONGEST_SPEC} are read"
            )
        dtype = getattr(torch, values["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise BadInput(f"{path}: dtype is {_short(values['dtype'])}, which torch does not have")
        if not dtype.is_floating_point:
            raise BadInput(f"{path}: dtype is {_short(values['dtype'])}, but a layer runs in a floating-point dtype")
        if not is_file_name(values["tensors"]):
            raise BadInput(
                f"{path}: the tensors file {_short(values['tensors'])} does not lie in {path.parent}; only plain file "
                "names are read"
            )
        return cls(**values)


def _short(value: Any) -> str:
    """A value as part of a sentence, cut if it is long."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 300:
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:80]}..."
