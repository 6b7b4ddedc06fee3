"""doctor: a sound installation passes, each fault is a finding of its own with its mend."""

import os
import sys
from functools import partial

import av
import pytest
import torch
from click.testing import CliRunner

from pacecore import doctor as module
from pacecore.backbones import bf16
from pacecore.cli.doctor import doctor as command
from pacecore.doctor import Finding, doctor, is_broken
from tests.gpus import gpus


@pytest.fixture(scope="module")
def sound():
    return doctor()


def only(findings, name):
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def test_a_sound_installation_has_nothing_missing(sound):
    assert not is_broken(sound), [finding for finding in sound if finding.state == "missing"]
    assert {finding.state for finding in sound} <= {"ok", "warn", "missing"}
    assert {finding.name for finding in sound} == set(module._CHECKS)
    assert torch.__version__ in only(sound, "torch").found
    devices = 1 + torch.cuda.device_count()
    for name in ("pace_clip", "info_nce", "bf16 conv3d"):
        assert len([finding for finding in sound if finding.name == name]) == devices
    assert all(finding.mend for finding in sound if finding.state != "ok")


def test_each_device_is_checked_for_itself(monkeypatch):
    monkeypatch.setattr(module, "_devices", lambda: ["cpu", "cpu"])
    for check in (module._pace_clip, module._info_nce):
        assert [state for state, *_ in check()] == ["ok", "ok"]


def test_a_package_that_does_not_import_is_one_finding(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "pacecore.video_writer", raising=False)
    finding = only(doctor(), "video")
    assert finding.state == "missing"
    assert "ModuleNotFoundError" in finding.found
    assert finding.mend == "pip install --force-reinstall av"


def test_the_compiler_is_found_as_the_build_finds_it(monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -m64")
    (found,) = module._tools()
    assert found[1].startswith(f"C++: {sys.executable};")


@pytest.mark.parametrize(
    ("lacks", "state", "words"),
    [("libx264", "warn", "writes mpeg4; without libx264"), ("h264", "missing", "; lacks h264")],
)
def test_a_codec_that_pyav_lacks_is_told(monkeypatch, lacks, state, words):
    codec = av.Codec
    monkeypatch.setattr(av, "Codec", lambda name, mode: codec("x" * (name == lacks) + name, mode))
    (found,) = module._video()
    assert found[0] == state
    assert words in found[1]


@pytest.mark.parametrize("name", ["pace_clip", "info_nce"])
def test_a_wrong_kernel_is_found(monkeypatch, name):
    package = __import__(f"pacecore.reference.{name}", fromlist=[name])
    true = getattr(package, name)

    def off(*args, **kwargs):
        result = true(*args, **kwargs)
        return result + 1 if name == "pace_clip" else (result[0] * 1.01, *result[1:])

    monkeypatch.setattr(package, name, off)
    finding = only(doctor(), name)
    assert finding.state == "missing"
    assert "largest error" in finding.found
    assert "the kernels are wrong here" in finding.mend


def test_bf16_convolution_off_is_a_warning(monkeypatch):
    def off(clips, weight, **kwargs):
        result = torch.nn.functional.conv3d(clips, weight, **kwargs)
        return result * 1.1 if clips.dtype == torch.bfloat16 else result

    check = partial(bf16.check_bf16_conv3d, convolution=off)
    monkeypatch.setattr(bf16, "check_bf16_conv3d", check)
    finding = only(doctor(), "bf16 conv3d")
    assert finding.state == "warn"
    assert finding.mend == "train without --amp bf16; training falls back by itself"


def test_an_extension_older_than_its_source_is_a_warning(tmp_path, monkeypatch):
    source = tmp_path / "csrc" / "cpu" / "op.cpp"
    source.parent.mkdir(parents=True)
    source.touch()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "pacecore" / "doctor.py"))
    for when, state in ((2**40, "warn"), (0, "ok")):
        os.utime(source, (when, when))
        (finding,) = [Finding("extension", *rest) for rest in module._extension()]
        assert finding.state == state
        assert finding.found.endswith("older than csrc") is (state == "warn")


def test_old_torch_is_missing(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    assert only(doctor(), "torch").state == "missing"


@pytest.mark.parametrize(("capability", "state"), [((8, 0), "missing"), ((7, 5), "warn")])
def test_a_gpu_that_the_kernels_do_not_serve(monkeypatch, capability, state):
    gpus(monkeypatch, capability, architectures="sm_90")
    (finding,) = [Finding("gpu", *rest) for rest in module._gpu()]
    assert finding.state == state
    assert f"cuda:0 Card, 80 GiB, sm_{capability[0]}{capability[1]}; " in finding.found
    assert finding.mend


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "_nvidia_smi", lambda: "driver sees Card, driver 580")
    (finding,) = [Finding("gpu", *rest) for rest in module._gpu()]
    assert finding.state == "warn"
    assert "driver sees Card" in finding.found


def test_command_prints_and_exits_by_the_findings(monkeypatch):
    findings = [Finding("one", "ok", "good"), Finding("two", "warn", "slow", "do this")]
    monkeypatch.setattr(module, "doctor", lambda: findings)
    result = CliRunner().invoke(command)
    assert result.exit_code == 0
    assert "-> do this" in result.output
    findings.append(Finding("three", "missing", "gone", "get it"))
    assert CliRunner().invoke(command).exit_code == 1
    result = CliRunner().invoke(command, ["--json"])
    assert result.exit_code == 1
    assert '"found": "gone"' in result.output
