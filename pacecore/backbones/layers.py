"""The one layer that all networks share."""

from torch import Tensor, nn

__all__ = ["ConvNorm", "Triple", "conv3d"]

Triple = tuple[int, int, int]


class ConvNorm(nn.Module):
    """Convolution and batch norm, with ReLU unless told otherwise."""

    def __init__(self, conv: nn.Module, channels: int, relu: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))


def conv3d(
    in_channels: int,
    out_channels: int,
    kernel: Triple,
    stride: Triple = (1, 1, 1),
    bias: bool = False,
) -> nn.Conv3d:
    """A convolution padded so that an odd kernel at stride 1 keeps the size."""
    padding = tuple(size // 2 for size in kernel)
    return nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=bias)
