"""Signatures stay readable, and what is public says what every argument is."""

import ast
import inspect
import re
from pathlib import Path

import jaxtransfer as jt

PACKAGE = Path(inspect.getfile(jt)).parent


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in named if argument.arg not in ("self", "cls")]


def _long_functions() -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    return {
        f"{file.relative_to(PACKAGE)}:{node.name}": node
        for file in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(_parameters(node)) > 12
    }


def test_more_than_twelve_parameters_are_public_keywords_that_are_documented() -> None:
    functions = _long_functions()
    assert functions
    for name, function in functions.items():
        assert not function.name.startswith("_"), name
        if any("app.command" in ast.unparse(decorator) for decorator in function.decorator_list):
            annotations = {
                argument.arg: ast.unparse(argument.annotation or ast.Constant("")) for argument in function.args.args
            }
            undocumented = [argument for argument, text in annotations.items() if not re.search("help=|^_", text)]
        else:
            assert len(function.args.args) <= 4, f"{name}: the others are keywords"
            documentation = ast.get_docstring(function) or ""
            undocumented = [
                argument
                for argument in _parameters(function)
                if not re.search(rf"^\s+{argument}: ", documentation, re.MULTILINE)
            ]
        assert not undocumented, name
