"""Measures that compare representations instead of attribution maps.

All take one array per network, [images, units] or [images, height, width, units], which may lie on disk; the number of
units may differ. All but `cka_places` flatten what follows the images. They are computed on the host in float64. None
is a mean over images, so standard errors come from the jackknife over groups of images. All warn if unrelated networks
would score high on the given images, see `Comparison.chance`.
"""

from collections.abc import Callable

from jaxtransfer.comparison.alignment import cka, cka_biased
from jaxtransfer.comparison.dds import dds_cosine, dds_laplacian, dds_pearson, dds_rbf
from jaxtransfer.comparison.jackknife import Comparison
from jaxtransfer.comparison.neighbours import mutual_knn
from jaxtransfer.comparison.place_alignment import cka_places
from jaxtransfer.comparison.rsa import depara, rsa, rsa_raw, rsa_zscored
from jaxtransfer.comparison.streaming import Representations
from jaxtransfer.comparison.subspaces import procrustes, svcca
from jaxtransfer.defaults import LINEAR_PREDICTIVITY

__all__ = ["BY_NAME", "RELATIVES", "Comparison", "Representations", "depara"]

# All but linear predictivity, which is directed, and DEPARA, which takes the similarities of maps too.
BY_NAME: dict[str, Callable[[Representations], Comparison]] = {
    "rsa": rsa,
    "cka": cka,
    "cka_biased": cka_biased,
    "svcca": svcca,
    "rsa_raw": rsa_raw,
    "rsa_zscored": rsa_zscored,
    "dds_cosine": dds_cosine,
    "dds_pearson": dds_pearson,
    "dds_laplacian": dds_laplacian,
    "dds_rbf": dds_rbf,
    "mutual_knn": mutual_knn,
    "procrustes": procrustes,
    "cka_places": cka_places,
}
RELATIVES = (LINEAR_PREDICTIVITY, "rsa", "depara", *(name for name in BY_NAME if name != "rsa"))
