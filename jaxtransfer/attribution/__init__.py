"""Attribution: which pixels of an image a network's representation depends on."""

from jaxtransfer.attribution.diagnostics import FAULTS as FAULTS
from jaxtransfer.attribution.maps import ATTRIBUTIONS as ATTRIBUTIONS
from jaxtransfer.attribution.maps import METHODS as METHODS
from jaxtransfer.attribution.maps import TargetFn as TargetFn
from jaxtransfer.attribution.maps import attribute as attribute
from jaxtransfer.attribution.maps import find_faults as find_faults
from jaxtransfer.attribution.precision import Precision as Precision
from jaxtransfer.attribution.targets import random_signs as random_signs
from jaxtransfer.attribution.targets import spatial_maximum as spatial_maximum
