"""Operations of encode, core and decode: r n k m products over tiles in the core, and what the bases take per tile."""

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
    """Analytic cost of one call, padding to whole tiles included; encoding the weight is done once and not counted.

    The bias is one addition per output, but where the decoder is a matrix it takes the place of adding to zero.
    """
    (rows, inputs, outputs), r = spec.sides, spec.rank
    n, k, m = -(-layer.batch // rows), -(-layer.in_features // inputs), -(-layer.out_features // outputs)
    kept = bases(spec)
    (encode_mul, encode_add), (decode_mul, decode_add) = per_tile(kept)
    core = r * n * k * m
    bias = layer.batch * layer.out_features if kept.fixed else 0
    narrow = spec.waist * (layer.in_features + layer.out_features)
    parameters = r * k * m + r * rows * (inputs + outputs) + narrow + layer.out_features
    return Cost(
        multiplications=core + n * k * encode_mul + n * m * decode_mul + layer.batch * narrow,
        additions=core + n * k * encode_add + n * m * decode_add + layer.batch * narrow + bias,
        lookups=0,
        bytes=element_size(layer.dtype)
        * (parameters + layer.batch * layer.in_features + layer.batch * layer.out_features),
        parameters=parameters,
    )
