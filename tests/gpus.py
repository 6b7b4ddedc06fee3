"""GPUs that are not there, for what only asks which there are."""

import torch

__all__ = ["gpus"]


class _Extension:
    def __init__(self, architectures: str, driver: str):
        self.info = {"cuda": "13.0" if architectures else None, "cuda_architectures": architectures}
        self.info["cuda_driver"] = driver

    def build_info(self) -> dict:
        return self.info


class _Properties:
    name, total_memory = "Card", 80 * 2**30

    def __init__(self, capability: tuple[int, int]):
        self.major, self.minor = capability


def gpus(
    monkeypatch,
    *capabilities: tuple[int, int],
    architectures: str = "sm_80 sm_90 compute_90",
    driver: str = "13.0",
) -> list:
    """torch has a GPU of each of `capabilities`, and pacecore kernels for `architectures` of CUDA
    13.0; gives the list of the devices that are set.
    """
    devices = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: _Properties(capabilities[number])
    )
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr("pacecore.kernels.extension", lambda: _Extension(architectures, driver))
    return devices
