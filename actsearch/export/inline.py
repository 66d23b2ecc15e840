"""A genotype as straight-line Python, written from the source of the operations themselves.

An operation's body becomes an expression in place; one of several statements that do not reduce to an expression
becomes a helper function, as it is written. Guards and clips that cannot act where they stand are left out, and so are
slots that do nothing.
"""

from __future__ import annotations

import ast
import builtins
import copy
import inspect
import keyword
import operator
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Any

from actsearch.errors import GenotypeError
from actsearch.export import bounds
from actsearch.genotype import Choice, Genotype
from actsearch.ops.graph import INPUT
from actsearch.ops.spec import REALS, OpSpec, Value, registry

WIDTH = 88  # of a line, the default of the common formatters
_READABLE = 64  # up to this length a slot that is read once is written into the line that reads it
_LONGEST_NAME = 12
_ARITHMETIC: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}

Bound = Mapping[str, float]


@dataclass(frozen=True)
class Dialect:
    """What differs between the array libraries that a function is written for.

    Attributes:
        function: the function that computes an operation.
        modules: the modules that such functions use, by the name they use.
        limit: what `guard.limit` is called there.
        clamp: template of an expression `{0}` kept within ±`{1}`.
        full_like: template of an array like `{0}` full of `{1}`.
        constant: the value of a function of constants, as a float.
        smooth_clip: text of the helper `_clip(y)`, with {limit}.
    """

    function: Callable[[OpSpec], Callable[..., Any]]
    modules: Mapping[str, ModuleType]
    limit: Callable[..., Any]
    clamp: str
    full_like: str
    constant: Callable[..., float]
    smooth_clip: str


@dataclass
class Written:
    """A function as text.

    Attributes:
        body: its statements, each a list of lines without indentation; the last one returns.
        helpers: texts of the functions that it calls, by name.
        bounds: the tables by dtype that `_limit` reads, by name.
        constants: vectors of coefficients, by name.
        modules: names of the modules that it uses.
    """

    body: list[str] = field(default_factory=list)
    helpers: dict[str, str] = field(default_factory=dict)
    bounds: dict[str, Bound] = field(default_factory=dict)
    constants: dict[str, tuple[float, ...]] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)


def write(
    genotype: Genotype,
    dialect: Dialect,
    parameter: Callable[[str, str], str] | None,
    reserved: set[str],
    indent: int = 4,
) -> Written:
    """The body of the function of `genotype`, which reads `x`.

    `parameter(slot, name)` is the expression of a trainable parameter; None: they are constants. `reserved` are names
    that no local variable may take. The body will be indented by `indent`.
    Raises GenotypeError if an operation's source cannot be read.
    """
    return _Writer(genotype, dialect, parameter, reserved | set(dialect.modules)).write(indent)


class _Writer:
    def __init__(
        self, genotype: Genotype, dialect: Dialect, parameter: Callable[[str, str], str] | None, reserved: set[str]
    ) -> None:
        self.genotype, self.dialect, self.parameter = genotype, dialect, parameter
        self.found = Written()
        self.names = _local_names(genotype.order, reserved)
        self.values: dict[str, ast.expr] = {INPUT: _name(INPUT)}  # by slot: a name
        self.intervals: dict[str, bounds.Interval] = {INPUT: REALS}  # by local name
        self.lines: dict[str, ast.expr] = {}  # by local name

    def write(self, indent: int) -> Written:
        for slot in self.genotype.order:
            self._add(slot, self.genotype.slots[slot])
        result = self.values[self.genotype.output]
        if self.genotype.scale != 1:
            result = ast.BinOp(ast.Constant(self.genotype.scale), ast.Mult(), result)
        result = self._folded(result)
        for name, expression in self.lines.items():
            self.found.body += _statement(f"{name} = ", expression, WIDTH - indent)
        self.found.body += _statement("return ", result, WIDTH - indent)
        return self._pruned()

    def _pruned(self) -> Written:
        """What was written, without what only left-out lines refer to."""
        found = self.found
        body = _names_in("def f():\n" + textwrap.indent("\n".join(found.body), "    "))
        found.helpers = {name: text for name, text in found.helpers.items() if name in body}
        used = body.union(*map(_names_in, found.helpers.values()))
        found.bounds = {name: bound for name, bound in found.bounds.items() if name in used}
        found.constants = {name: values for name, values in found.constants.items() if name in used}
        found.modules = used & set(self.dialect.modules)
        return found

    def _add(self, slot: str, choice: Choice) -> None:
        spec, clip = registry[choice.op], self.genotype.clip
        # A constant reads nothing: let it not keep a slot alive.
        reads = [self.values[INPUT if spec.constant else name] for name in choice.inputs]
        arguments = [self.intervals[_identifier(read)] for read in reads]
        values = None if self.parameter else dict(choice.parameters)
        # The maximum of two equal arguments is one of them; a mixture of two is, up to rounding only.
        hands_through = spec.projection or (spec.idempotent and not spec.parameters and _equal(reads))
        expression = reads[-1 if spec.id == "right" else 0] if hands_through else self._operation(slot, choice, reads)
        low, high = bounds.of_op(spec, arguments, values)
        if clip.needed(spec, inputs_limited=INPUT not in choice.inputs):
            # The smooth clip changes every value a little; the hard one only those beyond its limit.
            if clip.kind == "smooth" or max(-low, high) > clip.limit:
                expression = self._clipped(self._line(expression, self._unclipped_name(slot), (low, high)))
            low, high = max(low, -clip.limit), min(high, clip.limit)
        self.values[slot] = self._line(expression, self.names[slot], (low, high))

    def _clipped(self, value: ast.expr) -> ast.expr:
        clip = self.genotype.clip
        if clip.kind == "hard":
            return _filled(self.dialect.clamp, value, ast.Constant(float(clip.limit)))
        self.found.helpers["_clip"] = self.dialect.smooth_clip.format(limit=float(clip.limit))
        return ast.Call(_name("_clip"), [value], [])

    def _unclipped_name(self, slot: str) -> str:
        name = f"{self.names[slot]}_raw"
        while name in self.names.values():
            name += "_"
        return name

    def _line(self, expression: ast.expr, name: str, interval: bounds.Interval) -> ast.expr:
        """The name of the value of `expression`: that of an equal line, or `name`."""
        if isinstance(expression, ast.Name):
            return expression
        same = [name for name, line in self.lines.items() if ast.unparse(line) == ast.unparse(expression)]
        if same:
            return _name(same[0])
        self.lines[name] = expression
        self.intervals[name] = interval
        return _name(name)

    def _operation(self, slot: str, choice: Choice, reads: Sequence[ast.expr]) -> ast.expr:
        function = self.dialect.function(registry[choice.op])
        if self.parameter is None:
            parameters: list[ast.expr] = [self._constant(slot, *item) for item in choice.parameters.items()]
        else:
            parameters = [ast.parse(self.parameter(slot, name), mode="eval").body for name in choice.parameters]
        if (public := self._public_name(function)) is not None:
            return ast.Call(public, [*reads, *parameters], [])
        definition = _definition(function, choice.op)
        names = [argument.arg for argument in definition.args.args]
        given = dict(zip(names, reads, strict=False)) | dict(zip(choice.parameters, parameters, strict=True))
        inlined = _Inliner(function.__globals__, given, self).run(definition)
        if inlined is not None:
            return inlined
        ordered = [given[name] for name in names]
        return ast.Call(_name(self._helper(function, choice.op)), ordered, [])

    def _constant(self, slot: str, parameter: str, value: Value) -> ast.expr:
        """The expression of a constant: a vector gets a name, that of its slot."""
        if not isinstance(value, tuple):
            return ast.Constant(value)
        name = constant_name(self.names[slot], parameter)
        self.found.constants[name] = value
        return _name(name)

    def _public_name(self, function: Callable[..., Any]) -> ast.expr | None:
        """`torch.tanh` for a function of one of the dialect's modules."""
        attribute = getattr(function, "__name__", "")
        for name, module in self.dialect.modules.items():
            if getattr(module, attribute, None) is function:
                return ast.Attribute(_name(name), attribute)
        return None

    def _helper(self, function: Callable[..., Any], op: str) -> str:
        """Enter the function as it is written, with the numbers that it refers to by name; returns its name."""
        text = _source(function, op)
        definition = _definition(function, op)
        for name in sorted({n.id for n in ast.walk(definition) if isinstance(n, ast.Name)}):
            if name in function.__globals__:
                text = re.sub(rf"\b{name}\b", ast.unparse(self.resolved(name, function.__globals__)), text)
        text = re.sub(rf"^def {function.__name__}\(", f"def _{op}(", text)
        self.found.helpers[f"_{op}"] = text
        return f"_{op}"

    def resolved(self, name: str, scope: Mapping[str, Any]) -> ast.expr:
        """What stands for a global name of an operation's module."""
        value = scope[name]
        if isinstance(value, MappingProxyType):
            private = "_" + name.lstrip("_")
            self.found.bounds[private] = value
            return _name(private)
        if isinstance(value, int | float):
            return ast.Constant(value)
        if value is self.dialect.limit:
            return _name("_limit")
        return _name(name)

    def _folded(self, result: ast.expr) -> ast.expr:
        """Leave out the lines that nothing reads; write those read once into their reader, if that stays readable."""
        for name in reversed(list(self.lines)):
            if not any(_reads(e, name) for e in [*self.lines.values(), result]):
                del self.lines[name]
        for name in list(self.lines):
            readers = {key: _reads(e, name) for key, e in [*self.lines.items(), ("", result)]}
            if sum(readers.values()) != 1:
                continue
            reader = next(key for key, count in readers.items() if count)
            longer = _substituted(self.lines.get(reader, result), {name: self.lines[name]})
            if len(ast.unparse(longer)) <= _READABLE:
                del self.lines[name]
                if reader:
                    self.lines[reader] = longer
                else:
                    result = longer
        return result


class _Inliner(ast.NodeTransformer):
    """An operation's body as one expression of its arguments, which are names or constants."""

    def __init__(self, scope: Mapping[str, Any], given: dict[str, ast.expr], writer: _Writer) -> None:
        self.scope, self.given, self.writer, self.dialect = scope, given, writer, writer.dialect

    def run(self, definition: ast.FunctionDef) -> ast.expr | None:
        """The expression; None if the body does not reduce to one."""
        statements = [s for s in definition.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
        for k, statement in enumerate(statements):
            match statement:
                case ast.Return(value=ast.expr() as value):
                    return self.visit(copy.deepcopy(value))
                case ast.Assign(targets=[ast.Name(id=target)], value=value):
                    simple = self.visit(copy.deepcopy(value))
                    rest = ast.Module(statements[k + 1 :], [])
                    if isinstance(simple, ast.Name | ast.Constant) or _reads(rest, target) == 1:
                        self.given[target] = simple
                        continue
            return None
        return None

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.given:
            return copy.deepcopy(self.given[node.id])
        return self.writer.resolved(node.id, self.scope) if node.id in self.scope else node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            return ast.Constant(-node.operand.value)  # type: ignore[operator]
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if (
            isinstance(node.left, ast.Constant)
            and isinstance(node.right, ast.Constant)
            and type(node.op) in _ARITHMETIC
        ):
            return ast.Constant(float(_ARITHMETIC[type(node.op)](node.left.value, node.right.value)))
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Compare(
                left=ast.Name(id=name), ops=[ast.Gt()], comparators=[ast.Constant(value=float() as limit)]
            ):
                if self.writer.intervals.get(name, REALS)[1] <= limit:
                    return ast.Constant(False)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        # The table that a guard reads is entered only if the guard stays.
        if isinstance(node.func, ast.Name) and self.scope.get(node.func.id) is self.dialect.limit:
            argument = self.visit(node.args[0])
            table = node.args[1]
            assert isinstance(table, ast.Name)
            if self._within(argument, self.scope[table.id]["float32"]):
                return argument
            return ast.Call(_name("_limit"), [argument, self.visit(table)], [])
        self.generic_visit(node)
        match node:
            case ast.Call(
                func=ast.Attribute(value=inner, attr="clamp"),
                args=[_, ast.Constant(value=float() as most)],
                keywords=[],
            ) if self._within(inner, most):
                return inner
            case ast.Call(func=ast.Attribute(attr="clip"), args=[inner, _, ast.Constant(value=float() as most)]) if (
                self._within(inner, most)
            ):
                return inner
            case ast.Call(func=ast.Attribute(attr="where"), args=[ast.Constant(value=False), _, otherwise]):
                return otherwise
            case ast.Call(func=ast.Attribute(value=ast.Constant() as constant, attr="to")):
                return constant
            case ast.Call(func=ast.Attribute(value=ast.Constant() as constant, attr="expand_as"), args=[like]):
                return _filled(self.dialect.full_like, like, constant)
            case ast.Call(func=ast.Attribute() as function, args=[ast.Constant(value=value)], keywords=[]):
                return ast.Constant(self.dialect.constant(self._named(function), value))
        return node

    def _named(self, node: ast.expr) -> Any:
        """The object that a dotted name such as `torch.sigmoid` means."""
        if isinstance(node, ast.Attribute):
            return getattr(self._named(node.value), node.attr)
        assert isinstance(node, ast.Name)
        return self.dialect.modules[node.id]

    def _within(self, node: ast.expr, most: float) -> bool:
        """Whether a guard at ±most can never act on the value of `node`."""
        interval = self.writer.intervals.get(node.id) if isinstance(node, ast.Name) else None
        return interval is not None and max(-interval[0], interval[1]) <= most


# -- text ----------------------------------------------------------------------------------------------------------


def _statement(start: str, expression: ast.expr, room: int) -> list[str]:
    """The lines of a statement, broken as the common formatters do where only `room` columns are left."""
    text = formatted(ast.unparse(expression))
    if len(start + text) <= room:
        return [start + text]
    operands = [text] if len(text) <= room - 4 else _summands(expression)
    return [f"{start}(", *(f"    {operand}" for operand in operands), ")"]


def _summands(expression: ast.expr) -> list[str]:
    """The terms of a sum, each but the first with its sign."""
    match expression:
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op):
            whole = formatted(ast.unparse(expression))
            term = whole[len(formatted(ast.unparse(left))) + 3 :]
            return [*_summands(left), f"{'+' if isinstance(op, ast.Add) else '-'} {term}"]
    return [formatted(ast.unparse(expression))]


def formatted(text: str) -> str:
    """Code with its numbers as the common formatters write them: 1e20 and not 1e+20."""
    return re.sub(r"(?<=[0-9])e\+(?=[0-9])", "e", text)


def _local_names(slots: Sequence[str], reserved: set[str]) -> dict[str, str]:
    """A name of a local variable for every slot: its own if it is short and free."""
    taken = reserved | set(dir(builtins)) | {INPUT}
    names: dict[str, str] = {}
    for k, slot in enumerate(slots, 1):
        name = slot
        if len(name) > _LONGEST_NAME or name in taken or keyword.iskeyword(name) or name.startswith("_"):
            name = f"v{k}"
            while name in taken or name in slots:
                name += "v"
        taken.add(name)
        names[slot] = name
    return names


def constant_name(slot: str, parameter: str) -> str:
    """What the vector of a slot's operation is called in a file."""
    return f"_{slot}_{parameter}".upper()


def _definition(function: Callable[..., Any], op: str) -> ast.FunctionDef:
    definition = ast.parse(_source(function, op)).body[0]
    if not isinstance(definition, ast.FunctionDef):
        raise GenotypeError(f"operation {op!r} cannot be exported as source: it is not written as a function (`def`)")
    return definition


def _source(function: Callable[..., Any], op: str) -> str:
    try:
        return textwrap.dedent(inspect.getsource(function)).strip()
    except (OSError, TypeError):
        raise GenotypeError(f"operation {op!r} cannot be exported as source: its source code is not there") from None


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _identifier(node: ast.expr) -> str:
    assert isinstance(node, ast.Name)
    return node.id


def _names_in(text: str) -> set[str]:
    return {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}


def _equal(names: Sequence[ast.expr]) -> bool:
    return len({_identifier(name) for name in names}) == 1


def _reads(node: ast.AST, name: str) -> int:
    return sum(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node))


def _filled(template: str, *nodes: ast.expr) -> ast.expr:
    """The expression of `template` with `nodes` in the places of `{0}`, `{1}`, …"""
    places = [f"place{k}" for k in range(len(nodes))]
    tree = ast.parse(template.format(*places), mode="eval").body
    return _substituted(tree, dict(zip(places, nodes, strict=True)))


def _substituted(tree: ast.expr, values: Mapping[str, ast.expr]) -> ast.expr:
    class Substitute(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return copy.deepcopy(values[node.id]) if node.id in values else node

    found = Substitute().visit(copy.deepcopy(tree))
    assert isinstance(found, ast.expr)
    return found
