"""The text behind a conditioning: what was typed upstream of it in the graph that is running."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Graph = Mapping[str, dict]
"""A graph as it is queued: {node id: {"class_type": ..., "inputs": ...}}."""


def judged_text(prompt: str, graph: Graph | None, node: str | None, needs_prompt: bool) -> str:
    """``prompt``, or where it is empty the text upstream of ``node``'s input "positive".

    Raises:
        ValueError: none to be found, and a reward needs one.
    """
    if prompt.strip():
        return prompt
    found = ""
    link = (graph or {}).get(str(node), {}).get("inputs", {}).get("positive")
    if _is_link(link):
        found = text_behind(graph, link)
    if needs_prompt and not found.strip():
        raise ValueError(
            "Expected a prompt to judge images by, got an empty one and no text upstream of "
            "'positive'; type what the image should show into 'prompt'"
        )
    return found


def text_behind(graph: Graph, link: list) -> str:
    """The text that the conditioning at ``link`` (node id, output slot) was encoded from.

    Followed through whatever takes conditionings and gives them on, such as FluxGuidance and
    ControlNet; a node with several such outputs is followed from each to the input of its name.
    Texts that come together are joined by commas. Empty where none is found.
    """
    return ", ".join(dict.fromkeys(text for text in _texts(graph, link, set()) if text.strip()))


def _texts(graph: Graph, link: list, seen: set) -> Iterator[str]:
    node, slot = graph.get(str(link[0])), link[1]
    if node is None or (str(link[0]), slot) in seen:
        return
    seen.add((str(link[0]), slot))
    inputs, wires = node["inputs"], _wires(graph, node)
    outputs = _outputs(node)
    name = outputs[slot][1] if slot < len(outputs) else ""
    if sum(kind == "CONDITIONING" for kind, _ in outputs) > 1 and name in wires:
        wires = {name: wires[name]}
    if wires:
        for wire in wires.values():
            yield from _texts(graph, wire, seen)
        return
    texts = [_string(graph, value) for name, value in inputs.items() if _is_text(node, name)]
    yield max(texts, key=len, default="")


def _wires(graph: Graph, node: dict) -> dict[str, list]:
    """The node's inputs that are conditionings."""
    found = {}
    for name, value in node["inputs"].items():
        above = graph.get(str(value[0])) if _is_link(value) else None
        outputs = _outputs(above) if above else []
        if above and value[1] < len(outputs) and outputs[value[1]][0] == "CONDITIONING":
            found[name] = value
    return found


def _string(graph: Graph, value, depth: int = 8) -> str:
    """A text, or what a node that holds but one text gives on."""
    if isinstance(value, str):
        return value
    if not _is_link(value) or depth == 0:
        return ""
    node = graph.get(str(value[0]), {"class_type": "", "inputs": {}})
    inputs = node["inputs"]
    if node["class_type"] == "StringConcatenate":
        parts = [_string(graph, inputs.get(f"string_{name}", ""), depth - 1) for name in "ab"]
        return str(inputs.get("delimiter", "")).join(parts)
    texts = [v for name, v in inputs.items() if _is_text(node, name)]
    return _string(graph, texts[0], depth - 1) if len(texts) == 1 else ""


def _is_link(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)


def _is_text(node: dict, name: str) -> bool:
    declared = _class(node).INPUT_TYPES() if _class(node) else {}
    kinds = {**declared.get("required", {}), **declared.get("optional", {})}
    return name in kinds and kinds[name][0] == "STRING"


def _outputs(node: dict) -> list[tuple[str, str]]:
    """(type, name) of each output."""
    kind = _class(node)
    if kind is None:
        return []
    names = getattr(kind, "RETURN_NAMES", None) or kind.RETURN_TYPES
    return list(zip(kind.RETURN_TYPES, names, strict=True))


def _class(node: dict):
    from nodes import NODE_CLASS_MAPPINGS  # ComfyUI's

    return NODE_CLASS_MAPPINGS.get(node["class_type"])
