"""Which of the networks I already have should my new task start from?"""

from jaxtransfer._version import __version__ as __version__
from jaxtransfer.affinity import Affinity as Affinity
from jaxtransfer.attribution import METHODS as METHODS
from jaxtransfer.attribution import attribute as attribute
from jaxtransfer.errors import JaxTransferError as JaxTransferError
from jaxtransfer.network import Network as Network
from jaxtransfer.preprocess import Preprocess as Preprocess
from jaxtransfer.sweep import affinity_matrix as affinity_matrix
from jaxtransfer.sweep import image_similarities as image_similarities
from jaxtransfer.zoo import Zoo as Zoo
