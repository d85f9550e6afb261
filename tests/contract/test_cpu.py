"""Kernel families: what ONNX Runtime picks on a CPU, by what the system says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.contract.cpu import has_vnni, is_x86, kernel_family, this_cpu


@pytest.mark.parametrize(
    ("architecture", "flags", "family"),
    [
        ("x86_64", {"avx2", "avx512_vnni"}, "x86-64-vnni"),
        ("x86_64", {"avx2", "avx_vnni"}, "x86-64-vnni"),
        ("x86_64", {"avx2", "avx512f"}, "x86-64"),
        ("x86_64", set(), "x86-64"),
        ("AMD64", {"avx_vnni"}, "x86-64-vnni"),
        ("aarch64", {"asimd", "asimddp"}, "aarch64-dot"),
        ("aarch64", {"asimd"}, "aarch64"),
        ("arm64", {"asimddp"}, "aarch64-dot"),
        ("riscv64", {"v"}, "riscv64"),
        ("", set(), "unknown"),
    ],
)
def test_the_family_of_a_cpu(architecture: str, flags: set[str], family: str) -> None:
    assert kernel_family(architecture, frozenset(flags)) == family


def test_vnni_is_no_matter_of_arm() -> None:
    """A flag of that name elsewhere means nothing."""
    assert kernel_family("aarch64", frozenset({"avx_vnni"})) == "aarch64"
    assert not is_x86("aarch64")
    assert not has_vnni(frozenset({"asimddp"}))


@pytest.mark.parametrize("line", ["flags\t\t: fpu avx_vnni sse\n", "Features\t: fp avx_vnni\n"])
def test_flags_are_read_on_both_kinds_of_system(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: f"processor\t: 0\n{line}bugs\t: spectre\n")
    flags = this_cpu()[1]
    assert "avx_vnni" in flags
    assert "spectre" not in flags


def test_a_system_that_lists_nothing_has_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path) -> str:
        raise FileNotFoundError(2, "No such file", str(self))

    monkeypatch.setattr(Path, "read_text", missing)
    architecture, flags = this_cpu()
    assert flags == frozenset()
    assert kernel_family(architecture, flags)
