"""Product quantisation of a matrix product with B known, A B ~ sum_c T[c, code_c(A)], learnt from rows of A."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.pq.cache_lines import columns_of_lines
from basis_search.families.pq.fit import RIDGE, fit, learn_encoder, prototypes, store_table
from basis_search.families.pq.kernels import KERNELS
from basis_search.families.pq.reference import encode
from basis_search.families.pq.refine import fit_refined
from basis_search.families.pq.rotation import learn_rotation
from basis_search.families.pq.spec import BUCKETS, Spec, check
from basis_search.families.protocol import Kernel, Params, choose
from basis_search.layers.layer import Layer, LayerShape

FORMAT = "basis_search product-quantised product"
VERSION = 1
SHIFT_WARNING = 2.0
DTYPES = {str(t): t for t in (torch.float32, torch.bfloat16, torch.float64, torch.int16, torch.int8)}


@dataclass(frozen=True, eq=False)
class Codebook:
    """A learnt encoder and the tables of one known matrix B [D, M].

    Attributes:
        spec, params: as in the family `pq`.
        mean, deviation: [D], of the calibration rows.
        dtype: of the calibration rows and of the inputs.
        rotation: [D, D], by which rows are multiplied before they are encoded, or None.
    """

    spec: Spec
    params: Params
    mean: Tensor
    deviation: Tensor
    dtype: torch.dtype
    rotation: Tensor | None = None
    _packed: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(
        cls,
        a: Tensor,
        b: Tensor,
        codebooks: int = 16,
        encoder: str = "tree",
        table: str = "uint8",
        refine: bool = False,
        sums: str = "exact",
        lines: int | None = None,
        rotate: bool = False,
    ) -> Codebook:
        """Learns from rows a [n, D], of float32, bfloat16, int16 or int8, and the known b [D, M].

        With `refine` the trees are regrown on the output's error and the tables shrunk towards shallower trees; without
        it they are those of MADDNESS (arXiv 2106.10860). The cost at run time is the same. With `lines`, trees split
        only on columns of that many cache lines of a row: row-major inputs are encoded faster and less accurately. With
        `rotate`, rows are first multiplied by the rotation of optimized product quantization, D multiply-adds a column.

        Raises:
            BadInput: shapes disagree, values are not finite, too few rows, or more codebooks than columns.
        """
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise BadInput(
                f"the matrices have shapes {tuple(a.shape)} and {tuple(b.shape)}, but [n, D] and [D, M] are needed"
            )
        if a.dtype not in DTYPES.values():
            raise BadInput(f"the rows are {a.dtype}, not one of {list(DTYPES)}; convert them")
        spec = Spec(codebooks, encoder, table, sums)
        given = a if a.is_floating_point() else a.float()
        weight, rotation = b.T, None
        if rotate:
            if lines is not None or not a.is_floating_point():
                raise BadInput(
                    "rotated rows are floats, all of whose columns are read; take rotate=True off, or lines off and "
                    "rows of float32 or bfloat16"
                )
            check(spec, a.shape[1], len(a))
            rotation = learn_rotation(a, codebooks).to(a.dtype)
            given, weight = a @ rotation, (rotation.double().T @ b.double()).T.to(b.dtype)
        layer = Layer("product", weight, None, given, given[:1], max(1, len(a)), given.dtype, a.device)
        if lines is not None:
            params = _fit_within(spec, layer, lines, refine)
        else:
            params = fit_refined(spec, layer) if refine else fit(spec, layer)
        rows = a.double()
        return cls(spec, params, rows.mean(0).float(), rows.std(0, correction=0).float(), a.dtype, rotation)

    @property
    def in_features(self) -> int:
        return len(self.mean)

    @property
    def out_features(self) -> int:
        return self.params["table"].shape[2]

    def encode(self, a: Tensor) -> Tensor:
        """Codes of a [n, D]: [n, C] uint8 in 0 .. 15.

        Raises:
            BadInput: rows of another width or dtype.
        """
        self._check(a)
        return encode(self.spec, self.params, self._rotated(a)).to(torch.uint8)

    def matmul(self, a: Tensor, kernel: str | None = None) -> Tensor:
        """a [n, D] -> [n, M] in a's dtype (float32 for integers), by the fastest kernel or the one of that name.

        Raises:
            BadInput: rows of another width or dtype, or a kernel that refuses.
        """
        self._check(a)
        chosen = self.kernel(kernel, a.device, max(1, len(a)))
        if chosen.name not in self._packed:
            self._packed[chosen.name] = chosen.pack(self.spec, self.params)
        a = self._rotated(a)
        if not a.is_floating_point() and not chosen.name.startswith("cpu-"):
            a = a.float()
        result: Tensor = chosen.run(self.spec, self._packed[chosen.name], a)
        return result

    def kernel(self, name: str | None = None, device: torch.device | None = None, batch: int = 1) -> Kernel:
        """The kernel that `matmul` runs."""
        dtype = self.dtype if self.dtype.is_floating_point else torch.float32
        shape = LayerShape(self.in_features, self.out_features, batch, dtype, device or torch.device("cpu"))
        return choose(KERNELS, self.spec, shape, name)

    def shift(self, a: Tensor) -> float:
        """Mean squared standardised distance of rows a [n, D] from the calibration mean: about 1 for rows like those.

        Above 2 it warns: a product quantiser fails outside the region of its calibration rows.
        """
        self._check(a)
        varying = self.deviation > 0
        if not bool(varying.any()):
            return 1.0
        z = (a[:, varying].double() - self.mean[varying]) / self.deviation[varying]
        value = float(z.square().mean())
        if value > SHIFT_WARNING:
            warnings.warn(
                f"these rows lie {value:.1f} times as far from the calibration mean as the calibration rows do; the "
                "codebook has not seen such inputs, learn it again with rows like these",
                stacklevel=2,
            )
        return value

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file; its metadata holds the spec."""
        from safetensors.torch import save_file

        header = {"format": FORMAT, "version": VERSION, "spec": asdict(self.spec), "dtype": str(self.dtype)}
        tensors = {**self.params, "mean": self.mean, "deviation": self.deviation}
        if self.rotation is not None:
            tensors["rotation"] = self.rotation
        save_file({k: t.contiguous() for k, t in tensors.items()}, str(path), {"codebook": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path) -> Codebook:
        """Reads what `save` wrote.

        Raises:
            BadInput: not such a file, a truncated one, or one of a newer version.
        """
        from safetensors import SafetensorError, safe_open

        try:
            _check_byte_order(path)
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as problem:
            raise BadInput(f"{path} cannot be read as a codebook: {problem}") from problem
        try:
            header = json.loads(metadata.get("codebook", "{}"))
        except ValueError as problem:
            raise BadInput(f"{path}: its header is no JSON ({problem}); the file was edited") from problem
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise BadInput(f"{path} is a tensors file, but not one that Codebook.save wrote")
        if header["version"] > VERSION:
            raise BadInput(f"{path} has version {header['version']}, but this release reads up to {VERSION}; update it")
        if header.get("dtype") not in DTYPES:
            raise BadInput(
                f"{path}: the dtype is {header.get('dtype')!r}, not one of {list(DTYPES)}; the file was edited"
            )
        spec = Spec(**header["spec"])
        _check_shapes(path, spec, tensors)
        mean, deviation = tensors.pop("mean"), tensors.pop("deviation")
        rotation = tensors.pop("rotation", None)
        return cls(spec, tensors, mean, deviation, DTYPES[header["dtype"]], rotation)

    def _rotated(self, a: Tensor) -> Tensor:
        return a if self.rotation is None else a @ self.rotation

    def _check(self, a: Tensor) -> None:
        if a.ndim != 2 or a.shape[1] != self.in_features:
            raise BadInput(f"the rows have shape {tuple(a.shape)}, but [n, {self.in_features}] is needed")
        if a.dtype != self.dtype:
            raise BadInput(f"the rows are {a.dtype}, but the codebook was learnt on {self.dtype}; convert them")


def _check_byte_order(path: str | Path) -> None:
    """Raises BadInput if the file is byte-swapped: it starts with its header's length, 8 bytes, little-endian."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
    if int.from_bytes(start, "little") > size >= int.from_bytes(start, "big") + 8 > 8:
        raise BadInput(
            f"{path} was written with the other byte order (read backwards its header is "
            f"{int.from_bytes(start, 'big')} bytes long); write it again with Codebook.save, alike on every machine"
        )


def _fit_within(spec: Spec, layer: Layer, lines: int, refine: bool) -> Params:
    """Trees on the columns of few cache lines; tables by regression of the whole output on their codes."""
    if spec.encoder != "tree" or refine:
        raise BadInput("cache lines can be restricted for trees without refine=True; leave one of the two out")
    check(spec, layer.in_features, len(layer.inputs))
    columns = columns_of_lines(layer.inputs, layer.weight, lines, spec.codebooks)
    encoder = learn_encoder(spec, layer.inputs[:, columns])
    encoder["split_columns"] = columns[encoder["split_columns"].long()].int()
    codes = encode(spec, encoder, layer.inputs)
    table = prototypes(codes, layer.inputs.double(), RIDGE) @ layer.weight.double().T
    return encoder | store_table(table.view(spec.codebooks, BUCKETS, -1), spec.table)


def _check_shapes(path: str | Path, spec: Spec, tensors: Params) -> None:
    c = spec.codebooks
    for name in ("mean", "deviation", "table"):
        if name not in tensors:
            raise BadInput(f"{path} holds no {name}, which every codebook has; the file was edited")
    d, m = tensors["mean"].numel(), tensors["table"].shape[-1]
    expected = {"table": (c, 16, m), "mean": (d,), "deviation": (d,)}
    expected |= {"split_columns": (c, 4), "thresholds": (c, 15)} if spec.encoder == "tree" else {"centroids": (16, d)}
    expected |= {"scale": (m,), "offset": (m,)} if spec.table == "uint8" else {}
    expected |= {"rotation": (d, d)} if "rotation" in tensors else {}
    for name, shape in expected.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise BadInput(f"{path}: {name} has shape {found}, but its spec asks for {shape}; the file was edited")
    if spec.encoder == "tree" and not bool(((tensors["split_columns"] >= 0) & (tensors["split_columns"] < d)).all()):
        raise BadInput(f"{path}: a split column is outside 0 .. {d - 1}; the file was edited")
