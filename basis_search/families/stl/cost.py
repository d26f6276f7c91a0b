"""Cost of encode, core and decode: r n k m products over tiles in the core, plus the bases' operations per tile."""

from basis_search.families.protocol import Cost, element_size
from basis_search.families.stl.bases import Bases, bases
from basis_search.families.stl.spec import Spec
from basis_search.layers.layer import LayerLike


def per_tile(kept: Bases) -> tuple[tuple[int, int], tuple[int, int]]:
    """(multiplications, additions) to encode one tile of X, and to decode one tile of Y.

    Real bases are applied as matrices, 2 operations per entry; exact and ternary ones by their straight-line programs.
    """
    if kept.encoding is not None and kept.decoding is not None:
        return (0, kept.encoding.additions), (0, kept.decoding.additions)
    first, last = kept.encode.numel(), kept.decode.numel()
    return (first, first), (last, last)


def cost(spec: Spec, layer: LayerLike) -> Cost:
    """Analytic cost of one call, including padding to whole tiles; encoding the weight is done once and not counted.

    The bias is one addition per output, except that a decoding matrix starts its sums from it at no cost.
    """
    (rows, inputs, outputs), r = spec.sides, spec.rank
    n, k, m = -(-layer.batch // rows), -(-layer.in_features // inputs), -(-layer.out_features // outputs)
    kept = bases(spec)
    (encode_mul, encode_add), (decode_mul, decode_add) = per_tile(kept)
    core = r * n * k * m
    bias = layer.batch * layer.out_features if kept.fixed else 0
    low_rank = spec.waist * (layer.in_features + layer.out_features)
    parameters = r * k * m + r * rows * (inputs + outputs) + low_rank + layer.out_features
    return Cost(
        multiplications=core + n * k * encode_mul + n * m * decode_mul + layer.batch * low_rank,
        additions=core + n * k * encode_add + n * m * decode_add + layer.batch * low_rank + bias,
        lookups=0,
        bytes=element_size(layer.dtype)
        * (parameters + layer.batch * layer.in_features + layer.batch * layer.out_features),
        parameters=parameters,
    )
