"""Draws each detector's data flow as an SVG, in one style; what is new against DETR has the accent colour.

python docs/make_diagrams.py        writes docs/pictures/NAME.svg for every detector
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

WIDTH, HEIGHT, GAP, ROW_GAP, MARGIN = 156, 92, 26, 50, 24
PICTURES = Path(__file__).parent / "pictures"

STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }
  .node { fill: #f6f8fa; stroke: #57606a; stroke-width: 1.2 }
  .new { fill: #fff1e5; stroke: #bc4c00; stroke-width: 1.8 }
  .frame { fill: none; stroke: #8c959f; stroke-dasharray: 5 4 }
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1f2328 }
  .title { font-size: 13px; font-weight: 600; text-anchor: middle }
  .line { font-size: 11.5px; text-anchor: middle }
  .label { font-size: 11.5px; fill: #57606a }
  .accent { fill: #bc4c00 }
  .arrow { fill: none; stroke: #57606a; stroke-width: 1.4; marker-end: url(#tip) }
  .loop { fill: none; stroke: #bc4c00; stroke-width: 1.6; marker-end: url(#newtip) }
  .tip { fill: #57606a } .newtip { fill: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #30363d }
    .node { fill: #161b22; stroke: #8b949e }
    .new { fill: #2d1a0b; stroke: #f0883e }
    .frame { stroke: #6e7681 }
    text { fill: #e6edf3 }
    .label { fill: #9da7b1 }
    .arrow { stroke: #8b949e } .loop { stroke: #f0883e }
    .tip { fill: #8b949e } .newtip, .accent { fill: #f0883e }
  }
"""


@dataclass(frozen=True)
class Node:
    """A box at a column and a row: a title and up to three lines; `new` against DETR or not."""

    column: float
    row: float
    title: str
    lines: tuple[str, ...] = ()
    new: bool = False

    @property
    def left(self) -> float:
        """Its left edge in pixels."""
        return MARGIN + self.column * (WIDTH + GAP)

    @property
    def top(self) -> float:
        """Its upper edge in pixels."""
        return MARGIN + 6 + self.row * (HEIGHT + ROW_GAP)

    def point(self, side: str) -> tuple[float, float]:
        """The middle of one of its sides; `left`, `right`, `top` or `bottom`."""
        x = {"left": self.left, "right": self.left + WIDTH}.get(side, self.left + WIDTH / 2)
        y = {"top": self.top, "bottom": self.top + HEIGHT}.get(side, self.top + HEIGHT / 2)
        return x, y


@dataclass(frozen=True)
class Arrow:
    """From a side of one node to a side of another.

    Between two bottoms it runs below everything in between, between two left sides along the margin; `drop` is how far
    below its start an arrow that leaves downwards turns.
    """

    start: str
    start_side: str
    end: str
    end_side: str
    label: str = ""
    new: bool = False
    drop: float = 15


@dataclass(frozen=True)
class Diagram:
    """Nodes by name, arrows, and dashed frames: (title, first node, last node)."""

    title: str
    nodes: dict[str, Node]
    arrows: tuple[Arrow, ...]
    frames: tuple[tuple[str, str, str], ...] = ()
    legend: str = "new against DETR"
    extra: int = field(default=0)

    def svg(self) -> str:
        """The drawing as a file's text."""
        width = max(node.left for node in self.nodes.values()) + WIDTH + MARGIN
        height = max(node.top for node in self.nodes.values()) + HEIGHT + MARGIN + 34 + self.extra
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img" aria-label="{escape(self.title)}">',
            f"<style>{STYLE}</style>",
            "<defs>",
            *(
                f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
                f'markerUnits="userSpaceOnUse" orient="auto"><path class="{name}" d="M0 0 L8 4 L0 8 z"/></marker>'
                for name in ("tip", "newtip")
            ),
            "</defs>",
            f'<rect class="card" x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="8"/>',
            *(self._frame(*frame) for frame in self.frames),
            *(self._arrow(arrow) for arrow in self.arrows),
            *(_node(node) for node in self.nodes.values()),
            *_legend(self.legend, any(node.new for node in self.nodes.values()), height),
            "</svg>",
        ]
        return "\n".join(part for part in parts if part) + "\n"

    def _frame(self, title: str, first: str, last: str) -> str:
        a, b = self.nodes[first], self.nodes[last]
        left, top = a.left - 10, a.top - 12
        width, height = b.left + WIDTH + 10 - left, b.top + HEIGHT + 12 - top
        return (
            f'<rect class="frame" x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="8"/>\n'
            f'<text class="label" x="{left + 8:g}" y="{top - 5:g}">{escape(title)}</text>'
        )

    def _arrow(self, arrow: Arrow) -> str:
        (x, y), (u, v) = (
            self.nodes[arrow.start].point(arrow.start_side),
            self.nodes[arrow.end].point(arrow.end_side),
        )
        kind = "loop" if arrow.new else "arrow"
        if arrow.start_side == arrow.end_side == "bottom":
            low = max(y, v) + 27
            path, label = f"M{x:g} {y:g} V{low:g} H{u:g} V{v:g}", ((x + u) / 2, low + 14, "middle")
        elif x == u or y == v:
            path, label = f"M{x:g} {y:g} L{u:g} {v:g}", (x + 7, v - 17, "start")
        elif arrow.start_side == "bottom":
            turn = y + arrow.drop
            path, label = f"M{x:g} {y:g} V{turn:g} H{u:g} V{v:g}", ((x + u) / 2, turn - 5, "middle")
        elif arrow.start_side == arrow.end_side == "left":
            path, label = f"M{x:g} {y:g} H{MARGIN / 2:g} V{v:g} H{u:g}", (MARGIN, v - 6, "start")
        else:
            path, label = f"M{x:g} {y:g} H{u:g} V{v:g}", (x + 6, y - 6, "start")
        text = ""
        if arrow.label:
            accent = " accent" if arrow.new else ""
            text = (
                f'\n<text class="label{accent}" x="{label[0]:g}" y="{label[1]:g}" text-anchor="{label[2]}">'
                f"{escape(arrow.label)}</text>"
            )
        return f'<path class="{kind}" d="{path}"/>{text}'


def _node(node: Node) -> str:
    middle, spacing = node.left + WIDTH / 2, 16
    first = node.top + HEIGHT / 2 + 5 - spacing * len(node.lines) / 2
    texts = [f'<text class="title" x="{middle:g}" y="{first:g}">{escape(node.title)}</text>']
    for index, line in enumerate(node.lines, start=1):
        texts.append(f'<text class="line" x="{middle:g}" y="{first + spacing * index:g}">{escape(line)}</text>')
    box = (
        f'<rect class="{"new" if node.new else "node"}" x="{node.left:g}" y="{node.top:g}" width="{WIDTH}" '
        f'height="{HEIGHT}" rx="6"/>'
    )
    return "\n".join([box, *texts])


def _legend(text: str, shown: bool, height: float) -> list[str]:
    if not shown:
        return []
    y = height - 16
    return [
        f'<rect class="new" x="{MARGIN}" y="{y - 10:g}" width="14" height="10" rx="2"/>',
        f'<text class="label" x="{MARGIN + 21}" y="{y:g}">{escape(text)}</text>',
    ]


TRUNK = Node(0, 0, "trunk", ("picture →", "ResNet-50 → C5", "stride 32, 2048 channels"))
TOKENS = Node(1, 0, "tokens", ("1×1 to 256", "+ sine position", "(y half, x half)"))
ENCODER = Node(2, 0, "encoder × 6", ("dense self-attention:", "every cell looks", "at every cell"))
MEMORY = Node(3, 0, "memory", ("256 numbers a cell", "keys carry position,", "values do not"))
SELF = Node(2, 1, "self-attention", ("queries look", "at each other"))
FEED = Node(4, 1, "feed-forward", ("256 → 2048 → 256", "ReLU"))
FLOW = (
    Arrow("trunk", "right", "tokens", "left"),
    Arrow("tokens", "right", "encoder", "left"),
    Arrow("encoder", "right", "memory", "left"),
    Arrow("memory", "bottom", "cross", "top"),
    Arrow("self", "right", "cross", "left"),
    Arrow("cross", "right", "feed", "left"),
    Arrow("feed", "right", "heads", "left"),
)
DECODER = (("decoder × 6", "self", "feed"),)

DETR = Diagram(
    "DETR",
    {
        "trunk": TRUNK,
        "tokens": TOKENS,
        "encoder": ENCODER,
        "memory": MEMORY,
        "queries": Node(0.5, 1, "100 queries", ("position: learned", "content: starts at 0")),
        "self": SELF,
        "cross": Node(3, 1, "cross-attention", ("dense: queries look", "at every cell;", "content + position")),
        "feed": FEED,
        "heads": Node(5, 1, "heads", ("softmax: 91 + no object", "box = σ(MLP(output))", "after every layer")),
    },
    (*FLOW, Arrow("queries", "right", "self", "left")),
    DECODER,
)

CONDITIONAL = Diagram(
    "Conditional DETR",
    {
        "trunk": TRUNK,
        "tokens": TOKENS,
        "encoder": ENCODER,
        "memory": MEMORY,
        "queries": Node(0, 1, "300 queries", ("position: learned", "content: starts at 0")),
        "reference": Node(1, 1, "reference point", ("s = σ(MLP(position))", "p = sine(s) ×", "MLP(content)"), True),
        "self": Node(2, 1, "self-attention", ("content and position", "projected apart,", "then added"), True),
        "cross": Node(3, 1, "cross-attention", ("[content ; position]", "side by side", "in every head"), True),
        "feed": FEED,
        "heads": Node(5, 1, "heads", ("sigmoid: 91 (focal)", "box = σ(MLP(output)", "+ σ⁻¹(s) on x, y)"), True),
    },
    (
        *FLOW,
        Arrow("queries", "right", "reference", "left", new=True),
        Arrow("reference", "right", "self", "left"),
        Arrow("reference", "bottom", "cross", "bottom", "where: p, scaled anew in each layer", True),
    ),
    DECODER,
    extra=22,
)

DAB = Diagram(
    "DAB-DETR",
    {
        "trunk": TRUNK,
        "tokens": Node(1, 0, "tokens", ("1×1 to 256", "+ sine position,", "temperature 20"), True),
        "encoder": Node(2, 0, "encoder × 6", ("dense; position ×", "MLP(content)", "PReLU"), True),
        "memory": MEMORY,
        "queries": Node(0, 1, "300 anchors", ("x, y, w, h: learned", "content: starts at 0", "(or patterns)"), True),
        "reference": Node(1, 1, "position", ("MLP(sines of x y w h)", "p = sine(x, y) ×", "MLP(content)"), True),
        "self": Node(2, 1, "self-attention", ("content and position", "projected apart,", "then added")),
        "cross": Node(3, 1, "cross-attention", ("[content ; position]", "p × w_ref / w,", "p × h_ref / h"), True),
        "feed": Node(4, 1, "feed-forward", ("256 → 2048 → 256", "PReLU"), True),
        "heads": Node(5, 1, "heads", ("sigmoid: 91 (focal)", "box = σ(MLP(output)", "+ σ⁻¹(anchor))"), True),
    },
    (
        *FLOW,
        Arrow("queries", "right", "reference", "left", new=True),
        Arrow("reference", "right", "self", "left"),
        Arrow("heads", "bottom", "queries", "bottom", "every layer moves the anchor; the next gets it detached", True),
    ),
    DECODER,
    legend="new against Conditional DETR",
    extra=22,
)

DN = Diagram(
    "DN-DETR",
    {
        **{name: Node(node.column, node.row, node.title, node.lines) for name, node in DAB.nodes.items()},
        "queries": Node(0, 1, "300 anchors", ("x, y, w, h: learned", 'content: "no class",', "bit 0"), True),
        "self": Node(
            2, 1, "self-attention", ("queries see no noise,", "groups not each other;", "noise sees queries"), True
        ),
        "noised": Node(
            0, 2, "5 noised groups", ("in training: box moved,", "content its label, maybe", "a wrong one; bit 1"), True
        ),
        "restored": Node(
            5, 2, "restored", ("box and class of an", "object that is known:", "nothing is matched"), True
        ),
    },
    (
        *FLOW,
        Arrow("queries", "right", "reference", "left"),
        Arrow("reference", "right", "self", "left"),
        Arrow("noised", "top", "queries", "bottom", new=True),
        Arrow("heads", "bottom", "restored", "top", new=True),
        Arrow("heads", "bottom", "reference", "bottom", "every layer moves the anchor; the next gets it detached"),
    ),
    DECODER,
    legend="new against DAB-DETR",
)

DEFORMABLE_NODES = {
    "trunk": Node(0, 0, "trunk", ("picture →", "ResNet-50 → C3, C4, C5", "strides 8, 16, 32"), True),
    "tokens": Node(1, 0, "four levels", ("strides 8 to 64", "+ sine position", "+ level embedding"), True),
    "encoder": Node(2, 0, "encoder × 6", ("each cell samples", "4 levels × 4 points", "around itself"), True),
    "memory": Node(3, 0, "memory", ("all levels' cells", "in one sequence")),
    "queries": Node(0, 1, "300 queries", ("position half,", "content half:", "both learned"), True),
    "reference": Node(
        1, 1, "reference point", ("σ(linear(position))", "two-stage: a box that", "a cell proposes"), True
    ),
    "self": SELF,
    "cross": Node(3, 1, "cross-attention", ("queries sample", "4 levels × 4 points", "around the reference"), True),
    "feed": Node(4, 1, "feed-forward", ("256 → 1024 → 256", "ReLU")),
    "heads": Node(5, 1, "heads", ("sigmoid: 91 (focal)", "box = σ(MLP(content)", "+ σ⁻¹(reference))"), True),
}

DEFORMABLE = Diagram(
    "Deformable DETR",
    DEFORMABLE_NODES,
    (
        *FLOW,
        Arrow("queries", "right", "reference", "left", new=True),
        Arrow("reference", "right", "self", "left"),
        Arrow("heads", "bottom", "reference", "bottom", "refine: the next layer's reference, detached", True),
    ),
    DECODER,
    extra=22,
)


def _old(node: Node) -> Node:
    return Node(node.column, node.row, node.title, node.lines)


DAB_DEFORMABLE = Diagram(
    "DAB-Deformable-DETR",
    {
        **{name: _old(node) for name, node in DEFORMABLE_NODES.items()},
        "queries": Node(0, 1, "300 queries", ("anchor x, y, w, h", "and content:", "both learned"), True),
        "reference": Node(1, 1, "position", ("MLP(sines of anchor)", "× MLP(content)", "anew in each layer"), True),
        "cross": Node(3, 1, "cross-attention", ("samples 4 × 4 points", "inside the anchor:", "offsets × w, h"), True),
        "feed": Node(4, 1, "feed-forward", ("256 → 2048 → 256", "no dropout"), True),
    },
    (
        *FLOW,
        Arrow("queries", "right", "reference", "left", new=True),
        Arrow("reference", "right", "self", "left"),
        Arrow("heads", "bottom", "queries", "bottom", "the next layer's anchor, detached"),
    ),
    DECODER,
    legend="new against Deformable DETR with refine",
    extra=22,
)

DINO = Diagram(
    "DINO",
    {
        **{name: _old(node) for name, node in DEFORMABLE_NODES.items()},
        "proposals": Node(
            4, 0, "query selection", ("900 best tokens,", "by their best class,", "propose anchors"), True
        ),
        "queries": Node(0, 1, "900 queries", ("anchor: proposed", "content: learned"), True),
        "reference": Node(1, 1, "position", ("MLP(sines of anchor)", "anew in each layer"), True),
        "cross": Node(3, 1, "cross-attention", ("samples 4 × 4 points", "inside the anchor")),
        "feed": Node(4, 1, "feed-forward", ("256 → 2048 → 256", "no dropout")),
        "heads": Node(5, 1, "heads", ("shared by the layers;", "box = σ(MLP(output)", "+ σ⁻¹(anchor))"), True),
        "noised": Node(
            0,
            2,
            "noised objects",
            ("in training: restore", "them; further off: say", "that they are nothing"),
            True,
        ),
    },
    (
        *FLOW,
        Arrow("memory", "right", "proposals", "left", new=True),
        Arrow("proposals", "bottom", "queries", "top", new=True),
        Arrow("queries", "right", "reference", "left", new=True),
        Arrow("reference", "right", "self", "left"),
        Arrow("noised", "top", "queries", "bottom", new=True),
        Arrow("heads", "bottom", "reference", "bottom", "the next layer's anchor, detached; taught undetached", True),
    ),
    DECODER,
    legend="new against DAB-Deformable-DETR",
)

STACKED = Diagram(
    "Stacked DETR",
    {
        "trunk": Node(0, 0, "trunk", ("picture → ResNet-50", "C5: stride 32", "C4: stride 16"), True),
        "tokens": Node(1, 0, "tokens of C5", ("1×1 to 256", "+ sine position")),
        "encoder": Node(2, 0, "encoder 1 × 3", ("dense", "8 heads")),
        "memory": Node(3, 0, "memory 1", ("stride 32",)),
        "queries": Node(0, 1, "100 queries", ("positions 1: learned", "content: starts at 0")),
        "self": SELF,
        "cross": Node(3, 1, "cross-attention", ("dense, 8 heads", "into memory 1")),
        "feed": FEED,
        "heads": Node(5, 1, "heads", ("shared by all 3 + 3", "layers; all are taught,", "the last predicts"), True),
        "tokens2": Node(1, 2, "tokens of C4", ("1×1 to 256", "+ sine position"), True),
        "encoder2": Node(2, 2, "encoder 2 × 3", ("dense", "one head"), True),
        "memory2": Node(3, 2, "memory 2", ("stride 16",), True),
        "queries2": Node(0, 3, "100 queries", ("positions 2: learned", "content: the first", "stack's, normed"), True),
        "self2": Node(2, 3, "self-attention", ("queries look", "at each other"), True),
        "cross2": Node(3, 3, "cross-attention", ("dense, 8 heads", "into memory 2"), True),
        "feed2": Node(4, 3, "feed-forward", ("256 → 2048 → 256", "ReLU"), True),
    },
    (
        *FLOW,
        Arrow("queries", "right", "self", "left"),
        Arrow("tokens2", "right", "encoder2", "left", new=True),
        Arrow("encoder2", "right", "memory2", "left", new=True),
        Arrow("memory2", "bottom", "cross2", "top", new=True),
        Arrow("self2", "right", "cross2", "left", new=True),
        Arrow("cross2", "right", "feed2", "left", new=True),
        Arrow("queries2", "right", "self2", "left", new=True),
        Arrow("feed2", "right", "heads", "bottom", new=True),
        Arrow("trunk", "left", "tokens2", "left", "C4", True),
        Arrow("feed", "bottom", "queries2", "top", "content goes on, not detached", True, drop=32),
    ),
    (("decoder 1 × 3", "self", "feed"), ("decoder 2 × 3", "self2", "feed2")),
)

DETROVE = Diagram(
    "detrove-nano",
    {
        "trunk": Node(0, 0, "trunk", ("picture →", "MobileNetV2", "strides 8, 16, 32"), True),
        "tokens": Node(1, 0, "three levels", ("1×1 to 128", "+ sine position", "on the coarsest")),
        "encoder": Node(
            2, 0, "encoder, pyramid", ("dense on stride 32,", "convolutions carry it", "down and up"), True
        ),
        "memory": Node(3, 0, "memory", ("all levels' cells", "in one sequence")),
        "queries": Node(0, 1, "proposals", ("every cell proposes;", "several cells are taught", "each object"), True),
        "reference": Node(1, 1, "100 queries", ("best distinct boxes;", "content: what their", "cell saw"), True),
        "self": SELF,
        "cross": Node(3, 1, "cross-attention", ("samples 3 levels", "× 4 points", "inside the box"), True),
        "feed": Node(4, 1, "feed-forward", ("128 → 256 → 128", "norms before")),
        "heads": Node(5, 1, "heads", ("sigmoid: foretells", "the box's IoU;", "shared by layers"), True),
    },
    (
        *FLOW,
        Arrow("memory", "bottom", "queries", "top", new=True),
        Arrow("queries", "right", "reference", "left", new=True),
        Arrow("reference", "right", "self", "left"),
        Arrow("heads", "bottom", "reference", "bottom", "the next layer's box, detached", True),
    ),
    (("decoder × 2", "self", "feed"),),
    extra=22,
)

DIAGRAMS = {
    "detr": DETR,
    "deformable": DEFORMABLE,
    "conditional": CONDITIONAL,
    "dab": DAB,
    "dab_deformable": DAB_DEFORMABLE,
    "dn": DN,
    "dino": DINO,
    "stacked": STACKED,
    "detrove": DETROVE,
}


if __name__ == "__main__":
    for name, diagram in DIAGRAMS.items():
        (PICTURES / f"{name}.svg").write_text(diagram.svg(), encoding="utf-8")
