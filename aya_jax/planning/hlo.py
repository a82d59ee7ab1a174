"""The text of a compiled program: its computations, and how often each of their instructions runs."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_OPCODE = re.compile(r" ([a-z][\w-]*)\(")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|called_computations|branch_computations)=")


def array_bytes(shape: str) -> list[int]:
    """Return the bytes of every array in the text of a shape; layouts and what is no array are passed over."""
    sizes = []
    for kind, sides in _ARRAY.findall(shape):
        bits = 8 if kind == "pred" else int(re.sub(r"^[a-z]+(\d+).*", r"\1", kind))
        sizes.append(math.prod(int(n) for n in sides.split(",") if n) * bits // 8)
    return sizes


def parts_of(shape: str) -> list[str]:
    """Return the parts of a tuple's shape, each of which may be a tuple; of an array, itself."""
    inside = shape.strip()
    if not inside.startswith("("):
        return [inside]
    parts, depth = [""], 0
    for letter in inside[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


@dataclass(frozen=True)
class Instruction:
    """One line of a computation: its name, its shape, what it does, and the rest of the line."""

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """The names of its arguments."""
        inside = self.rest[: _closing(self.rest)]
        return re.findall(r"%?([\w.-]+)(?=,|$| *\))", re.sub(r"/\*.*?\*/", "", inside))

    def attribute(self, name: str) -> str | None:
        """Return the value of `name=...` after the arguments, or None; braces are taken whole."""
        found = re.search(rf"\b{name}=", self.rest[_closing(self.rest) :])
        if not found:
            return None
        text = self.rest[_closing(self.rest) + found.end() :]
        if text.startswith("{"):
            return text[: _closing(text[1:], "{", "}") + 2]
        return re.split(r",(?![^{]*\})", text)[0].strip()

    @property
    def called(self) -> list[tuple[str, str]]:
        """How and which computations it runs, as pairs such as `("body", "loop.1")`."""
        pairs = []
        tail = self.rest[_closing(self.rest) :]
        for found in _CALLED.finditer(tail):
            value = self.attribute(found[1]) or ""
            pairs += [(found[1], name) for name in re.findall(r"[\w.-]+", value)]
        return pairs


def _closing(text: str, opening: str = "(", closing: str = ")") -> int:
    """Return where the bracket that was open before `text` closes."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == opening) - (letter == closing)
        if not depth:
            return place
    return len(text)


@dataclass(frozen=True)
class Module:
    """The computations of a program, by name, and the one it starts with."""

    computations: dict[str, list[Instruction]]
    entry: str
    named: dict[str, dict[str, Instruction]] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "Module":
        """Read the text that `compiled.as_text()` returns."""
        computations: dict[str, list[Instruction]] = {}
        entry, current = "", None
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                current = computations.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
                continue
            found = _INSTRUCTION.match(line)
            if found and current is not None:
                opcode = _OPCODE.search(found[2])
                if opcode:
                    shape, rest = found[2][: opcode.start()], found[2][opcode.end() :]
                    current.append(Instruction(found[1], shape, opcode[1], rest))
        named = {name: {i.name: i for i in body} for name, body in computations.items()}
        return cls(computations, entry, named)

    def runs(self, unknown: int = 1) -> Iterator[tuple[str, Instruction, int]]:
        """Yield each instruction with its computation and how often it runs in one run of the program.

        A branch that is chosen at run time counts as taken.

        Args:
          unknown: how often a loop turns whose number of turns the text does not tell.
        """
        for name, times in self._times(unknown).items():
            for instruction in self.computations[name]:
                yield name, instruction, times

    @cached_property
    def unknown_loops(self) -> int:
        """How many loops there are whose number of turns the text does not tell."""
        return sum(
            self.turns(name, i) is None
            for name, body in self.computations.items()
            for i in body
            if i.opcode == "while"
        )

    def _times(self, unknown: int) -> dict[str, int]:
        times: dict[str, int] = {}

        def visit(name: str, count: int) -> None:
            times[name] = times.get(name, 0) + count
            for instruction in self.computations[name]:
                turns = 1
                if instruction.opcode == "while":
                    known = self.turns(name, instruction)
                    turns = unknown if known is None else known
                for how, called in instruction.called:
                    # What adds up two numbers inside a reduction is no part of the program's own.
                    if how != "to_apply" or instruction.opcode in ("call", "async-start"):
                        visit(called, count * turns)

        visit(self.entry, 1)
        return times

    def turns(self, computation: str, loop: Instruction) -> int | None:
        """Return how often a `while` turns, or None where the text does not tell.

        The compiler writes it down as `known_trip_count`, or else the condition compares a counter that
        starts at a constant with another constant.
        """
        known = re.search(r"known_trip_count\W+n\W+(\d+)", loop.rest)
        if known:
            return int(known[1])
        condition = dict(loop.called).get("condition")
        if condition is None:
            return None
        lines = self.named[condition]
        compared = next((i for i in lines.values() if i.opcode == "compare"), None)
        if compared is None or "direction=LT" not in compared.rest or len(compared.operands) != 2:
            return None
        counter, limit = (lines.get(name) for name in compared.operands)
        if counter is None or limit is None or counter.opcode != "get-tuple-element":
            return None
        stop = _constant(limit)
        if stop is None:
            return None
        index = int(counter.attribute("index") or 0)
        return max(stop - self._start(computation, loop, index), 0)

    def _start(self, computation: str, loop: Instruction, index: int) -> int:
        """Return what a loop's counter begins with: a constant, or 0 where that cannot be told."""
        lines = self.named[computation]
        made = lines.get(loop.operands[0])
        first = lines.get(made.operands[index]) if made and made.opcode == "tuple" else None
        while first is not None and first.opcode in ("copy", "bitcast") and first.operands:
            first = lines.get(first.operands[0])
        return (_constant(first) or 0) if first is not None else 0


def _constant(instruction: Instruction) -> int | None:
    found = re.match(r"(-?\d+)\)", instruction.rest)
    return int(found[1]) if instruction.opcode == "constant" and found else None
