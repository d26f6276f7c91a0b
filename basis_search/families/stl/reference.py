"""Reference in float64: Y_IJ = unvec(D . sum_K (E vec X_IK) * w_KJ) + U V X + b, over tiles IJ."""

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.protocol import Params
from basis_search.families.stl.spec import Spec


def reference(spec: Spec, params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out], float64; rows, in and out features are padded with zeros to whole tiles."""
    (tn, tk, tm), out_features = spec.sides, int(params["out_features"])
    encode, decode, weight = (params[name].double() for name in ("encode", "decode", "weight"))
    if encode.shape != (spec.rank, tn * tk) or decode.shape != (tn * tm, spec.rank) or len(weight) != spec.rank:
        raise BadInput(
            f"the bases are {list(encode.shape)} and {list(decode.shape)}, but the spec's are "
            f"{[spec.rank, tn * tk]} and {[tn * tm, spec.rank]}"
        )
    rows = x.double().reshape(-1, x.shape[-1])
    n, k = rows.shape
    padded = F.pad(rows, (0, -k % tk, 0, -n % tn))
    N, K = padded.shape[0] // tn, padded.shape[1] // tk
    tiles = padded.view(N, tn, K, tk).permute(0, 2, 1, 3).flatten(2)  # [n/tn, k/tk, tn*tk]
    encoded = torch.einsum("la,IKa->lIK", encode, tiles)
    products = torch.einsum("lIK,lKJ->lIJ", encoded, weight)
    out = torch.einsum("cl,lIJ->IJc", decode, products)  # [n/tn, m/tm, tn*tm]
    y: Tensor = out.reshape(N, -1, tn, tm).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[:n, :out_features]
    if spec.waist:
        if (params["up"].shape[1], len(params["down"])) != (spec.waist, spec.waist):
            raise BadInput(f"the low-rank part has rank {len(params['down'])}, but the spec says {spec.waist}")
        y = y + rows @ params["down"].double().T @ params["up"].double().T
    if "bias" in params:
        y = y + params["bias"].double()
    return y.reshape(*x.shape[:-1], out_features)
