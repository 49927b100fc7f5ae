"""The text behind a conditioning: what was typed upstream of it in the graph that is running."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


def judged_text(prompt: str, graph, node: str | None, needs_prompt: bool) -> str:
    """``prompt``, or where it is empty the text upstream of ``node``'s input "positive".

    Args:
        graph: the host's ``DynamicPrompt``, which knows expanded nodes too.

    Raises:
        ValueError: none to be found, and a reward needs one.
    """
    if prompt.strip():
        return prompt
    own = None if graph is None or node is None else Node.of(graph, node)
    link = own.inputs.get("positive") if own else None
    found = text_behind(graph, link) if is_link(link) else ""
    if needs_prompt and not found.strip():
        raise ValueError(
            "Expected a prompt to judge images by, got an empty one and no text upstream of "
            "'positive'; type what the image should show into 'prompt'"
        )
    return found


def text_behind(graph, link: list) -> str:
    """The text that the conditioning at ``link`` (node id, output slot) was encoded from.

    Followed through whatever takes conditionings and gives them on, such as FluxGuidance and
    ControlNet; a node with several such outputs is followed from each to the input of its name, and
    a switch to what it is set to. Texts that come together are joined by commas. Empty where none
    is found.
    """
    return ", ".join(dict.fromkeys(text for text in _texts(graph, link, set()) if text.strip()))


@dataclass(frozen=True)
class Node:
    """One node of the graph, with what its class declares.

    Attributes:
        kinds: inputs' types by name. outputs: types and names by slot.
    """

    inputs: dict
    kinds: dict[str, object]
    outputs: tuple[tuple[object, str], ...]

    @classmethod
    def of(cls, graph, number: str) -> Node | None:
        """None where it is not there."""
        from nodes import NODE_CLASS_MAPPINGS  # ComfyUI's

        if not graph.has_node(str(number)):
            return None
        found = graph.get_node(str(number))
        try:
            kind = NODE_CLASS_MAPPINGS[found["class_type"]]
            declared = kind.INPUT_TYPES()
            inputs = {**declared.get("required", {}), **declared.get("optional", {})}
            kinds = {name: spec[0] for name, spec in inputs.items()}
            types, names = list(kind.RETURN_TYPES), getattr(kind, "RETURN_NAMES", None)
        except Exception:  # a class of another pack, which may do anything
            kinds, types, names = {}, [], None
        names = list(names) if isinstance(names, (list, tuple)) else []
        names += [str(type_) for type_ in types[len(names) :]]
        return cls(found["inputs"], kinds, tuple(zip(types, names, strict=False)))

    def output(self, slot: int) -> tuple[object, str]:
        """Type and name of an output."""
        return self.outputs[slot] if slot < len(self.outputs) else ("*", "")

    def links(self) -> dict[str, list]:
        """The inputs that are wired."""
        return {name: value for name, value in self.inputs.items() if is_link(value)}

    def switched(self) -> dict[str, list] | None:
        """The wire of the host's switch node that is on; None for another node."""
        on, links = self.inputs.get("switch"), self.links()
        if not isinstance(on, bool) or not {"on_true", "on_false"} & set(links):
            return None
        chosen = "on_true" if on else "on_false"
        return {chosen: links[chosen]} if chosen in links else {}


def _texts(graph, link: list, seen: set) -> Iterator[str]:
    node, slot = Node.of(graph, link[0]), link[1]
    if node is None or (str(link[0]), slot) in seen:
        return
    seen.add((str(link[0]), slot))
    name, wires = node.output(slot)[1], _wires(graph, node)
    several = sum(kind == "CONDITIONING" for kind, _ in node.outputs) > 1
    if several and name in wires:
        wires = {name: wires[name]}
    if wires:
        for wire in wires.values():
            yield from _texts(graph, wire, seen)
        return
    texts = {n: _string(graph, v) for n, v in node.inputs.items() if node.kinds.get(n) == "STRING"}
    if several:  # an encoder of both prompts
        wanted = "negative" in name.lower()
        texts = {n: text for n, text in texts.items() if ("negative" in n.lower()) == wanted}
    yield max(texts.values(), key=len, default="")


def _wires(graph, node: Node) -> dict[str, list]:
    """The node's inputs that are conditionings; of a switch, the one that it is set to."""
    switch = node.switched()
    if switch is not None:
        return switch
    found = {}
    for name, link in node.links().items():
        above = Node.of(graph, link[0])
        comes = above is not None and above.output(link[1])[0] == "CONDITIONING"
        if comes or node.kinds.get(name) == "CONDITIONING":
            found[name] = link
    return found


def _string(graph, value, depth: int = 8) -> str:
    """A text, or what a node that does nothing but hold one gives on."""
    if isinstance(value, str):
        return value
    node = Node.of(graph, value[0]) if is_link(value) and depth else None
    if node is None:
        return ""
    switch = node.switched()
    if switch is not None:
        return "".join(_string(graph, link, depth - 1) for link in switch.values())
    if {"string_a", "string_b", "delimiter"} <= set(node.inputs):  # the host's StringConcatenate
        parts = [_string(graph, node.inputs[f"string_{name}"], depth - 1) for name in "ab"]
        return _string(graph, node.inputs["delimiter"], depth - 1).join(parts)
    if list(node.kinds.values()) != ["STRING"]:  # it may make another text of what it is given
        return ""
    return _string(graph, next(iter(node.inputs.values()), ""), depth - 1)


def is_link(value) -> bool:
    """Whether an input is wired: [node id, output slot]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)
