"""Checks the sizes that depend on the number of images in a `.pt2` file, before PyTorch evaluates them.

A size is an expression such as `Mul(Integer(4), Symbol('s77', positive=True, integer=True))`:

    expression = ["-"] integer | text | constant | function "(" [argument {"," argument}] ")"
    argument   = [keyword "="] expression

A power has an integer as its exponent, and no value may need more than a few thousand bits.
"""

import re

_MAX_CHARACTERS, _MAX_DEPTH, _MAX_BITS = 2000, 30, 4096
_BITS = 64  # of an integer, and of the value of a symbol

_CONSTANTS = re.compile(r"[su]\d+|true|false|True|False")
_FUNCTIONS = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|Max|Min|Abs|floor"
    r"|ceiling|Eq|Ne|Equality|Unequality|GreaterThan|LessThan|StrictGreaterThan|StrictLessThan|And|Or|Not"
    r"|IntTrueDiv|FloatTrueDiv|ToFloat|TruncToInt|CeilToInt|FloorToInt|RoundToInt|Identity"
)
_KEYWORDS = ("positive", "integer", "nonnegative", "negative", "real", "zero", "nonzero", "precision", "evaluate")
_TOKEN = re.compile(r"\s*([A-Za-z]\w*|\d{1,18}(?!\d)|'[su]\d{1,9}'|'-?\d{1,18}(?:\.\d{1,30})?'|[(),=-])")


def is_size(text: object) -> bool:
    """Whether a text is the expression of a size that PyTorch may evaluate."""
    if not isinstance(text, str) or len(text) > _MAX_CHARACTERS:
        return False
    tokens, place = [], 0
    while place < len(text.rstrip()):
        token = _TOKEN.match(text, place)
        if token is None:
            return False
        tokens.append(token[1])
        place = token.end()
    try:
        parser = _Parser(tokens)
        parser.expression(0)
    except ValueError:
        return False
    return not parser.tokens


class _Parser:
    """Takes tokens from the front of a list."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens

    def expression(self, depth: int) -> tuple[int, int | None]:
        """Takes an expression; returns an upper bound of its bits, and its value if it is an integer.

        Raises:
            ValueError: There is none, or its value may be too large.
        """
        if depth > _MAX_DEPTH:
            raise ValueError
        sign = -1 if self._takes("-") else 1
        token = self._take()
        if token.isdigit():
            return _BITS, sign * int(token)
        if token.startswith("'"):
            return _BITS, None
        if _CONSTANTS.fullmatch(token):
            return _BITS, None
        if not (_FUNCTIONS.fullmatch(token) and self._takes("(")):
            raise ValueError
        arguments: list[tuple[int, int | None]] = []
        while not self._takes(")"):
            if arguments and not self._takes(","):
                raise ValueError
            if self.tokens[1:2] == ["="] and self._take() in _KEYWORDS:
                self._take()
            arguments.append(self.expression(depth + 1))
        bits, value = sum(of_argument for of_argument, _ in arguments), None
        if token == "Integer" and len(arguments) == 1:
            value = arguments[0][1]
        if token == "Pow":
            (base, _), (_, exponent) = arguments
            if exponent is None:
                raise ValueError
            bits = base * max(1, abs(exponent))
        if bits > _MAX_BITS:
            raise ValueError
        return bits, value

    def _take(self) -> str:
        if not self.tokens:
            raise ValueError
        return self.tokens.pop(0)

    def _takes(self, token: str) -> bool:
        """Takes a token if it is the next one."""
        if self.tokens[:1] != [token]:
            return False
        self._take()
        return True
