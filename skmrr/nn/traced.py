"""Graphs of traced networks as JSON: layers, and functions that have interval bounds."""

import keyword
import re
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node, Tracer

from skmrr.nn.interval_rules import FUNCTION_RULES, METHOD_RULES
from skmrr.nn.known import FUNCTIONS

BOUNDED = {name: function for name, function in FUNCTIONS.items() if function in FUNCTION_RULES}
NAMES = {function: name for name, function in BOUNDED.items()}
OPERATIONS = ("placeholder", "get_attr", "call_module", "call_function", "call_method", "output")
PLACE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def write_graph(graph: Graph) -> list:
    """Return the steps of a graph: operation, target, arguments, and those by name.

    Raises
    ------
    TypeError
        If a step has no interval bounds.
    """
    positions = {node: k for k, node in enumerate(graph.nodes)}

    def write(argument: Any) -> Any:
        if isinstance(argument, Node):
            return {"node": positions[argument]}
        if isinstance(argument, list | tuple):
            kind = "tuple" if isinstance(argument, tuple) else "list"
            return {kind: [write(part) for part in argument]}
        if argument is None or isinstance(argument, bool | int | float | str):
            return argument
        raise TypeError(f"{argument!r} is no number, string or step")

    steps = []
    for node in graph.nodes:
        target = NAMES.get(node.target) if node.op == "call_function" else node.target
        if target is None:
            raise TypeError(f"{node.target} has no interval bounds")
        arguments = [write(part) for part in node.args]
        steps.append([node.op, target, arguments, {k: write(v) for k, v in node.kwargs.items()}])
    return steps


def read_graph(steps: list) -> Graph:
    """Return the graph of some steps.

    Raises
    ------
    ValueError
        If a step is none, or names what graphs may not hold. Torch turns a graph into Python code:
        nothing but names and numbers may get there.
    """
    graph = Graph(tracer_cls=Tracer)
    nodes: list[Node] = []

    def read(argument: Any) -> Any:
        if isinstance(argument, dict) and len(argument) == 1:
            ((tag, content),) = argument.items()
            if tag == "node" and type(content) is int and 0 <= content < len(nodes):
                return nodes[content]
            if tag in ("list", "tuple") and isinstance(content, list):
                return {"list": list, "tuple": tuple}[tag](read(part) for part in content)
        if argument is None or isinstance(argument, bool | int | float | str):
            return argument
        raise ValueError(f"a traced network has no argument {argument!r:.80}.")

    for step in steps:
        operation, target, arguments, by_name = step
        _check_step(operation, target, by_name)
        function = BOUNDED[target] if operation == "call_function" else target
        args = tuple(read(part) for part in arguments)
        kwargs = {name: read(part) for name, part in by_name.items()}
        nodes.append(graph.create_node(operation, function, args, kwargs))
    graph.lint()
    return graph


def _check_step(operation: Any, target: Any, by_name: Any) -> None:
    fits = operation in OPERATIONS and isinstance(target, str) and isinstance(by_name, dict)
    if operation == "call_function":
        fits = fits and target in BOUNDED
    elif operation == "call_method":
        fits = fits and target in METHOD_RULES
    elif operation in ("placeholder", "output"):
        fits = fits and _is_name(target)
    else:
        fits = fits and PLACE.fullmatch(target) is not None and "__" not in target
    if not fits or not all(map(_is_name, by_name)):
        raise ValueError(f"a traced network has no step {operation!r} of {target!r:.80}.")


def _is_name(name: Any) -> bool:
    return (
        isinstance(name, str)
        and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None
        and not keyword.iskeyword(name)
    )


def graph_module(root: nn.Module, steps: list) -> GraphModule:
    """Traced network with the parts of `root`, those of its graph."""
    traced = GraphModule(root, read_graph(steps))
    traced.training = root.training
    return traced
