"""The protocol: what a family provides, its kernels and their dispatch, its costs, its specs as JSON."""

from basis_search.families.protocol.cost import Cost, Forecast, element_size
from basis_search.families.protocol.eigenvectors import batched_eigh, batched_eigvalsh
from basis_search.families.protocol.error_feedback import answering_bias, rounded_in_metric, rounding_gains
from basis_search.families.protocol.family import Family
from basis_search.families.protocol.gpu_operator import GpuOperator, aligned_rows, guarded
from basis_search.families.protocol.kernel import Kernel, Params, accept, choose, keep, reference_kernel
from basis_search.families.protocol.latency_prior import assumed_ratio
from basis_search.families.protocol.refusals import (
    COMPILED_DTYPES,
    LEAST_CAPABILITY,
    NOT_INSTALLED,
    TRITON_DTYPES,
    compiled_refusal,
    triton_refusal,
)
from basis_search.families.protocol.rounding import relative_gap, tolerance
from basis_search.families.protocol.sizes import OUT_FEATURES, with_size
from basis_search.families.protocol.spec_json import spec_from_json, spec_hash, spec_to_json
from basis_search.families.protocol.style import MARKERS, Style
from basis_search.families.protocol.torch_linear import linear, padded_linear

__all__ = [
    "COMPILED_DTYPES",
    "LEAST_CAPABILITY",
    "MARKERS",
    "NOT_INSTALLED",
    "OUT_FEATURES",
    "TRITON_DTYPES",
    "Cost",
    "Family",
    "Forecast",
    "GpuOperator",
    "Kernel",
    "Params",
    "Style",
    "accept",
    "aligned_rows",
    "answering_bias",
    "assumed_ratio",
    "batched_eigh",
    "batched_eigvalsh",
    "choose",
    "compiled_refusal",
    "element_size",
    "guarded",
    "keep",
    "linear",
    "padded_linear",
    "reference_kernel",
    "relative_gap",
    "rounded_in_metric",
    "rounding_gains",
    "spec_from_json",
    "spec_hash",
    "spec_to_json",
    "tolerance",
    "triton_refusal",
    "with_size",
]
