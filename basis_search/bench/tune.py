"""Measure the block sizes of the Triton kernels on this machine's GPU and write them to a tuning file.

Every launch of a family's kernels is timed with each configuration that fits, replayed from a CUDA graph.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from basis_search.bench.kronecker import gpu as kronecker_gpu
from basis_search.bench.pq import gpu as pq_gpu
from basis_search.bench.stl import gpu as stl_gpu
from basis_search.config import TuneConfig
from basis_search.errors import BadInput, near_miss
from basis_search.evaluation.cuda_clock import CudaClock, Uncapturable
from basis_search.families import kronecker, pq, stl
from basis_search.families.kronecker import kernels_triton as kronecker_triton
from basis_search.families.pq import kernels_triton as pq_triton
from basis_search.families.protocol import triton_refusal
from basis_search.families.stl import kernels_triton as stl_triton
from basis_search.layers.layer import LayerShape

if TYPE_CHECKING:
    from basis_kernels.launch.gpu import Tuner

Call = Callable[[], object]
SecondsOf = Callable[[Call], float]
Case = Callable[["Tuner"], None]
"""Tunes the kernels of one layer."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CALLS_PER_GRAPH, REPLAYS = 8, 5
LARGEST_FUSED = 4096**3
"""Multiplications of the largest dense layer at which Strassen-Tile's fused kernel is tuned; it loses most above."""
MONARCH = ("(1,64,64,64)*(64,64,64,1)", "(1,32,32,32)*(32,32,32,1)")
"""Chains of the benches that one launch computes."""


def tune(config: TuneConfig, seconds_of: SecondsOf | None = None) -> str:
    """Measures what the file does not know yet. Returns a sentence on what was done.

    Args:
        config: checked here.
        seconds_of: the time of one call; by default that of a replayed CUDA graph.

    Raises:
        BadInput: no GPU, no Triton, an unknown value.
    """
    suites = tuple(SUITES) if config.suite == "all" else (config.suite,)
    if suites[0] not in SUITES:
        raise BadInput(f"there is no suite {config.suite!r} to tune{near_miss(config.suite, [*SUITES, 'all'])}")
    if config.dtype not in DTYPES:
        raise BadInput(f"there is no dtype {config.dtype!r} to tune{near_miss(config.dtype, list(DTYPES))}")
    if config.seconds is not None and not config.seconds > 0:
        raise BadInput(f"seconds is {config.seconds}, but a time above 0 is needed, or null for no limit")
    device = _device(config.device)
    shapes = [_layer(text, DTYPES[config.dtype], device) for text in config.shapes]
    from basis_kernels.launch import tuning_file
    from basis_kernels.launch.gpu import Tuner
    from basis_kernels.launch.gpu.launcher import forget, hardware
    from basis_kernels.launch.gpu.tuner import OutOfTime

    gpu = hardware(device).name
    path = _path(config.out, tuning_file.user_folder(), tuning_file.file_name(gpu))
    try:
        tuner = Tuner(path, gpu, seconds_of or partial(graph_seconds, CudaClock(device)), config.seconds)
    except ValueError as problem:
        raise BadInput(str(problem)) from problem
    by_suite = [SUITES[name](shapes, DTYPES[config.dtype], device, config.gradients) for name in suites]
    ended = ""
    try:
        for case in itertools.chain.from_iterable(itertools.zip_longest(*by_suite)):
            if case is not None:
                case(tuner)
    except OutOfTime:
        ended = f", stopped after {config.seconds:g} s: the same command goes on"
    forget()
    failed = f"; {len(tuner.failures)} configurations cannot run: {_listed(tuner.failures)}" if tuner.failures else ""
    return f"{path}: {tuner.measured} problems measured, {tuner.known} known before{ended}{failed}"


def _listed(failures: dict[tuple[str, str], str]) -> str:
    return "; ".join(f"{kernel} {configuration}: {reason}" for (kernel, configuration), reason in failures.items())


def graph_seconds(clock: CudaClock, call: Call) -> float:
    """Seconds of one call on the GPU, several in one graph, with a second-level cache emptied before."""

    def several() -> None:
        for _ in range(CALLS_PER_GRAPH):
            call()

    call()
    try:
        replay = clock.capture(several)
    except Uncapturable as problem:
        from basis_kernels.launch.gpu.tuner import NotTimed

        raise NotTimed(str(problem)) from problem
    try:
        times = [clock.seconds(replay.run, behind=clock.flush, waits=False) for _ in range(REPLAYS)]
    finally:
        replay.close()
    return statistics.median(times) / CALLS_PER_GRAPH


def _device(name: str) -> torch.device:
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise BadInput(f"tune measures a GPU, not {name!r}; use device=cuda or device=cuda:1")
    if not torch.cuda.is_available():
        raise BadInput(f"device={name} was asked for, but torch sees no CUDA device here; tune on a machine with a GPU")
    device = torch.device(name if ":" in name else f"cuda:{torch.cuda.current_device()}")
    if device.index >= torch.cuda.device_count():
        raise BadInput(f"device={name} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    if (refusal := triton_refusal(LayerShape(64, 64, 64, torch.bfloat16, device))) is not None:
        raise BadInput(f"nothing can be tuned here: {refusal}")
    return device


def _layer(text: str, dtype: torch.dtype, device: torch.device) -> LayerShape:
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if found is None or "0" in found.groups():
        raise BadInput(f"{text!r} is no shape; write ROWSxINPUTSxOUTPUTS, such as 8192x4096x11008")
    rows, inputs, outputs = map(int, found.groups())
    return LayerShape(inputs, outputs, rows, dtype, device)


def _path(out: str | None, folder: Path, name: str) -> Path:
    if out is None:
        return folder / name
    return Path(out) if out.endswith(".json") else Path(out) / name


def _input(shape: LayerShape, gradients: bool) -> Tensor:
    x = torch.randn(shape.batch, shape.in_features, device=shape.device).to(shape.dtype)
    return x.requires_grad_(gradients)


def _run(tuner: Tuner, call: Callable[[], Tensor], gradients: bool) -> None:
    """Calls once while the tuner measures, backwards as well with `gradients`."""
    with tuner.running(), contextlib.nullcontext() if gradients else torch.no_grad():
        y = call()
        if gradients:
            torch.autograd.backward(y, torch.randn_like(y))


def _stl(shapes: list[LayerShape], dtype: torch.dtype, device: torch.device, gradients: bool) -> Iterator[Case]:
    squares = [LayerShape(n, n, n, dtype, device) for n in stl_gpu.SIZES]
    for shape in shapes or squares:
        for spec in stl_gpu.SPECS:
            yield partial(_tune_stl, spec, shape, gradients)


def _tune_stl(spec: stl.Spec, shape: LayerShape, gradients: bool, tuner: Tuner) -> None:
    from basis_kernels.stl.gpu.tuning import FUSED

    params, x = stl_gpu.random_params(spec, shape), _input(shape, gradients)
    for name in ("weight", "encode", "decode") if gradients else ():
        params[name].requires_grad_()
    three, fused = (partial(stl_triton.run, whether, spec, params, x) for whether in (False, True))
    _run(tuner, three, gradients)
    if shape.batch * shape.in_features * shape.out_features > LARGEST_FUSED:
        return
    _run(tuner, fused, gradients)
    if tuner.uncompared(FUSED):
        with _looked_up_in(tuner.path), torch.no_grad():
            tuner.compare(FUSED, tuner.seconds_of(fused), tuner.seconds_of(three))


@contextlib.contextmanager
def _looked_up_in(path: Path) -> Iterator[None]:
    """Configurations come from that file first."""
    from basis_kernels.launch.tuning_file import ENVIRONMENT

    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = str(path)
    try:
        yield
    finally:
        del os.environ[ENVIRONMENT]
        if before is not None:
            os.environ[ENVIRONMENT] = before


def _kronecker(shapes: list[LayerShape], dtype: torch.dtype, device: torch.device, gradients: bool) -> Iterator[Case]:
    precisions = ("ieee",) if dtype != torch.float32 else ("ieee", "tf32x3")
    chains = [(kronecker.Spec(chain=text), None) for text in MONARCH]
    chains += [(kronecker.Spec(chain=f"({a},{b},{c},{d})"), None) for a, b, c, d in kronecker_gpu.grid()]
    own = [(spec, shape) for shape in shapes for spec in kronecker.examples(shape)]
    for spec, shape in own or chains:
        outputs, inputs = spec.parsed.shape
        layer = shape or LayerShape(inputs, outputs, kronecker_gpu.BATCH, dtype, device)
        for last, precision in itertools.product((False,) if own else (False, True), precisions):
            yield partial(_tune_kronecker, spec, layer, (last, precision), gradients)


def _tune_kronecker(
    spec: kronecker.Spec,
    shape: LayerShape,
    way: tuple[bool, str],
    gradients: bool,
    tuner: Tuner,
) -> None:
    last, precision = way
    outputs, inputs = spec.parsed.shape
    params = kronecker.initialize(spec, LayerShape(inputs, outputs), bias=False, seed=0)
    packed = kronecker_triton.pack(spec, params)
    weights = [w.to(shape.device, shape.dtype).requires_grad_(gradients) for w in packed.weights]
    x = _input(LayerShape(inputs, outputs, shape.batch, shape.dtype, shape.device), False)
    x = (x.T.contiguous() if last else x).requires_grad_(gradients)
    for fused in (False, True) if len(weights) == 2 and not gradients else (False,):
        call = partial(kronecker_triton.chain, x, weights, last=last, precision=precision, fused=fused)
        _run(tuner, call, gradients)


def _pq(shapes: list[LayerShape], dtype: torch.dtype, device: torch.device, gradients: bool) -> Iterator[Case]:
    layers = [
        (pq.Spec(codebooks), LayerShape(d, m, batch, dtype, device))
        for d, m, codebooks in pq_gpu.LAYERS
        for batch in pq_gpu.BATCHES
    ]
    own = [(spec, shape) for shape in shapes for spec in pq.examples(shape) if spec.encoder == "tree"]
    for spec, shape in own or layers:
        yield partial(_tune_pq, spec, shape)


def _tune_pq(spec: pq.Spec, shape: LayerShape, tuner: Tuner) -> None:
    draw = torch.Generator(shape.device).manual_seed(0)
    params = pq_gpu.random_params(spec, shape, draw)
    if spec.table == "float32":
        params["table"] = params["table"].float()
    packed = pq_triton.pack(spec, params)
    _run(tuner, partial(pq_triton.run, spec, packed, _input(shape, False)), False)


SUITES: dict[str, Callable[[list[LayerShape], torch.dtype, torch.device, bool], Iterator[Case]]] = {
    "stl": _stl,
    "kronecker": _kronecker,
    "pq": _pq,
}
