"""The one exception a user can cause."""


class JaxTransferError(ValueError):
    """Bad input, said in one sentence that names the file or argument and what to do about it.

    The command line prints the sentence on stderr and ends with exit status 2.
    """
