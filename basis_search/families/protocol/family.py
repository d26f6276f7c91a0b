"""The members of a family's package."""

from __future__ import annotations

from typing import Any, Protocol

from basis_search.families.protocol.cost import Cost, Forecast
from basis_search.families.protocol.kernel import Kernel, Params
from basis_search.families.protocol.style import Style
from basis_search.layers.layer import Layer, LayerLike


class Family(Protocol):
    """A package under `families/`; its public names are these."""

    @property
    def Space(self) -> type[Any]:
        """Bounds of the search: a dataclass with a default for every field."""

    @property
    def Spec(self) -> type[Any]:
        """The structure of one candidate: frozen, hashable, JSON-able, without tensors; it validates its fields."""

    @property
    def KERNELS(self) -> tuple[Kernel, ...]:
        """Slowest first; KERNELS[0] is "reference", plain float64 torch, and one is "torch"."""

    @property
    def FITS_ROWS(self) -> bool:
        """Whether the time of a fit grows with the number of rows: a search then tries it on few rows first."""

    @property
    def STYLE(self) -> Style:
        """Colours and marker in reports, different from every other family's."""

    def suggest(self, trial: Any, layer: Layer, space: Any, /) -> Any:
        """One spec from an optuna trial. Raises BadInput with the reason if the layer admits none."""

    def examples(self, layer: LayerLike, /) -> tuple[Any, ...]:
        """Two or more different specs that fit a layer of that shape, the simplest first; one if only one exists."""

    def fit(self, spec: Any, layer: Layer, /) -> Params:
        """Parameters on `layer.device` that minimise the output error on `layer.inputs`; deterministic.

        It is computed there: `layer.on_device()` has all tensors on the device.
        """

    def cost(self, spec: Any, layer: LayerLike, /) -> Cost:
        """Analytic cost per call of `layer.batch` rows, padding included."""

    def forecast(self, spec: Any, layer: Layer, /) -> Forecast:
        """Predicted error and latency, in far less time than a fit takes; deterministic."""
