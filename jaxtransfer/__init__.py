"""Which of the networks I already have should my new task start from?

The public names and their modules are listed in `__init__.pyi`. They are imported when they are first used, so that
`jaxtransfer --help` does not wait for JAX.
"""

import lazy_loader

from jaxtransfer._version import __version__ as __version__
from jaxtransfer.errors import JaxTransferError as JaxTransferError

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
