"""What the weights of our networks are called in other projects' files.

Every table goes from our name to theirs; the network's own list of names turns it round, so that a
name is either known exactly or left over. Three spellings cover the published files:

    vcop    laura-wang/video-pace, xudejing/video-clip-order-prediction, PeihaoChen/RSPNet (c3d and
            r2plus1d-vcop), and yuanyao366/PRP (r3d and r21d)
    prp     yuanyao366/PRP: c3d
    coclr   TengdaHan/CoCLR: the Inception blocks of its S3D, which is otherwise another network
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch

from pacecore.backbones import DEPTHS, build_backbone

__all__ = ["HEADS", "SOURCES", "Source", "candidate_networks", "names_of", "shapes_of"]

Rules = tuple[tuple[str, str], ...]

_RESIDUAL: Rules = (
    (r"^conv1\.norm\.", r"bn1."),
    (r"^(conv\d)\.0\.", r"\1.block1."),
    (r"^(conv\d)\.(\d+)\.", r"\1.blocks.\2."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", r".downsamplebn."),
    (r"\.shortcut\.conv\.", r".downsampleconv."),
    (r"(conv\d)\.conv\.", r"\1."),
)
_R21D: Rules = (
    *_RESIDUAL,
    (r"\.(spatial|temporal)\.", r".\1_conv."),
    (r"\.norm\.", r".bn."),
)
_R3D: Rules = (
    *_RESIDUAL,
    (r"(conv\d|downsampleconv)\.weight$", r"\1.temporal_spatial_conv.weight"),
)
_C3D: Rules = (
    (r"^conv([12])\.0\.", r"conv\1."),
    (r"^conv(\d)\.0\.", r"conv\1a."),
    (r"^conv(\d)\.1\.", r"conv\1b."),
    (r"^(conv\w+)\.conv\.", r"\1."),
    (r"^conv(\w+)\.norm\.", r"bn\1."),
)
_C3D_PRP: Rules = (
    (r"^conv([12])\.0\.", r"conv\1."),
    (r"^conv(\d)\.0\.", r"conv\1_1."),
    (r"^conv(\d)\.1\.", r"conv\1_2."),
    (r"\.conv\.", r".conv3d.0."),
    (r"\.norm\.", r".conv3d.1."),
)
_S3DG_GATES: Rules = (
    (r"\.plain\.1\.linear\.", r".gating_b0.fc."),
    (r"\.wide\.2\.linear\.", r".gating_b1.fc."),
    (r"\.narrow\.2\.linear\.", r".gating_b2.fc."),
    (r"\.pooled\.2\.linear\.", r".gating_b3.fc."),
)
_S3DG: Rules = (
    (r"^conv1\.", r"conv1.first."),
    (r"^conv2\.0\.", r"conv_2b.first."),
    (r"^conv2\.1\.", r"conv_2c."),
    (r"^conv2\.2\.linear\.", r"gating.fc."),
    (r"^mixed(\d\w)\.", r"mixed_\1."),
    *_S3DG_GATES,
    (r"\.plain\.0\.", r".conv_b0.first."),
    (r"\.wide\.0\.", r".conv_b1_a.first."),
    (r"\.wide\.1\.", r".conv_b1_b."),
    (r"\.narrow\.0\.", r".conv_b2_a.first."),
    (r"\.narrow\.1\.", r".conv_b2_b."),
    (r"\.pooled\.1\.", r".conv_b3_b.first."),
    (r"\.(?:first|0)\.conv\.", r".conv1."),
    (r"\.(?:first|0)\.norm\.", r".bn1."),
    (r"\.1\.conv\.", r".conv2."),
    (r"\.1\.norm\.", r".bn2."),
)
_S3DG_COCLR: Rules = (
    (r"^conv1\.", r""),  # its stem is 1x7x7 and 7x1x1: no counterpart
    (r"^conv2\.0\.", r"Conv_2b."),
    (r"^conv2\.1\.", r"Conv_2c.split."),
    (r"^conv2\.2\.", r""),  # it has no gate there
    (r"^mixed(\d\w)\.", r"Mixed_\1."),
    *_S3DG_GATES,
    (r"\.plain\.0\.", r".branch0.0."),
    (r"\.wide\.0\.", r".branch1.0."),
    (r"\.wide\.1\.", r".branch1.1.split."),
    (r"\.narrow\.0\.", r".branch2.0."),
    (r"\.narrow\.1\.", r".branch2.1.split."),
    (r"\.pooled\.1\.", r".branch3.1."),
    (r"\.split\.0\.conv\.", r".conv1."),
    (r"\.split\.0\.norm\.", r".bn1."),
    (r"\.split\.1\.conv\.", r".conv2."),
    (r"\.split\.1\.norm\.", r".bn2."),
    (r"\.norm\.", r".bn."),
)

SPELLINGS: dict[str, dict[str, Rules]] = {
    "pacecore": {"c3d": (), "r3d": (), "r21d": (), "s3dg": ()},
    "vcop": {"c3d": _C3D, "r3d": _R3D, "r21d": _R21D, "s3dg": _S3DG},
    "prp": {"c3d": _C3D_PRP},
    "coclr": {"s3dg": _S3DG_COCLR},
}

HEADS = {"c3d": "linear.", "r3d": "linear.", "r21d": "linear.", "s3dg": "fc."}
"""The classifier's name in the vcop spelling."""


@dataclass(frozen=True)
class Source:
    """One way in which a project writes a network: spelling, what stands before, and the head.

    head: the classifier's name as it stands in the file; "" where there is none, None where HEADS
        names it. `repeats` is a pattern of names that hold a weight a second time.
    """

    title: str
    spelling: str
    prefix: str = ""
    head: str | None = ""
    repeats: str | None = None
    note: str = ""


_COCLR = {
    "spelling": "coclr",
    "repeats": r"^block\d\.",
    "note": "CoCLR's S3D has another stem, no gate after it and pads its pooling on both sides: "
    "what is loaded is a start for training, the outputs are not CoCLR's",
}

SOURCES = (
    Source("pacecore", "pacecore", "backbone.", "head."),
    Source("pacecore, backbone alone", "pacecore"),
    Source("video-pace, or a VCOP or PRP classifier", "vcop", "", None),
    Source("VCOP or PRP pre-training", "vcop", "base_network."),
    Source("RSPNet pre-training", "vcop", "encoder_q.encoder."),
    Source("RSPNet pre-training, one task", "vcop", "encoder_q."),
    Source("RSPNet fine-tuned", "vcop", "encoder.", "fc."),
    Source("PRP classifier", "prp", "", "linear."),
    Source("PRP pre-training", "prp", "base_network."),
    Source("CoCLR pre-training", prefix="encoder_q.0.", **_COCLR),
    Source("CoCLR classifier", prefix="backbone.", **_COCLR),
)


def candidate_networks() -> Iterable[tuple[str, int | None]]:
    """Every network and depth that a file may hold."""
    for network in SPELLINGS["pacecore"]:
        for depth in DEPTHS if network in ("r3d", "r21d") else (None,):
            yield network, depth


@lru_cache
def names_of(spelling: str, network: str, depth: int | None) -> dict[str, str]:
    """Their name -> ours, for every weight of the network that the spelling has; {} if none."""
    if network not in SPELLINGS[spelling]:
        return {}
    names = {}
    for ours in shapes_of(network, depth):
        theirs = _spell(ours, SPELLINGS[spelling][network])
        if theirs is not None:
            names[theirs] = ours
    return names


@lru_cache
def shapes_of(network: str, depth: int | None, width: float = 1.0) -> dict[str, torch.Size]:
    """Shape of every entry of the network's state dict."""
    with torch.device("meta"):
        backbone = build_backbone(network, depth, width)
    return {name: tensor.shape for name, tensor in backbone.state_dict().items()}


def _spell(name: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        if replacement == "":
            if re.search(pattern, name):
                return None
            continue
        name = re.sub(pattern, _block_number if "blocks" in replacement else replacement, name)
    return name


def _block_number(match: re.Match) -> str:
    """Blocks after the first are counted from 0 in their list, from 1 in ours."""
    return f"{match[1]}.blocks.{int(match[2]) - 1}."
