"""Which values a matrix may take, whatever the runtime computes in. A member is one file here, one
line in ``QUANTIZERS`` and one row in the conformance test; see ``codes.Quantizer``.
"""

from __future__ import annotations

from autocompress.quantizers.adaptive_float import AdaptiveFloat
from autocompress.quantizers.centroids import Centroids
from autocompress.quantizers.codes import Quantizer
from autocompress.quantizers.linear import Linear
from autocompress.quantizers.product import Product

QUANTIZERS: dict[str, type[Quantizer]] = {
    "linear": Linear,
    "centroids": Centroids,
    "adaptive-float": AdaptiveFloat,
    "product": Product,
}
