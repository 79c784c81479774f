"""Which form runs: the argument before the environment, the environment before the device; never without a word."""

import importlib.util
import logging
from typing import Any

import pytest
import torch
from nested_kernels import attention_hvp, backend, delta_rule
from torch import Tensor


def operands(tokens: int = 40) -> dict[str, Tensor]:
    q, k, v = (torch.randn(1, 2, tokens, 8) / 3 for _ in range(3))
    return {"q": q, "k": k, "v": v, "eta": q.new_full((1, 2, tokens), 0.5), "alpha": torch.rand(1, 2, tokens),
            "state": torch.randn(1, 2, 8, 8)}  # fmt: skip


def reads(x: dict[str, Tensor], **options: Any) -> Tensor:
    return delta_rule(**x, **options)[0]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.ENVIRONMENT, raising=False)
    backend._say.cache_clear()


def test_the_environment_chooses_where_the_argument_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    x = operands()
    loop, chunked = reads(x, backend="reference"), reads(x, backend="chunked")
    assert not torch.equal(loop, chunked)  # or nothing here could be told apart
    assert torch.equal(reads(x), chunked)
    monkeypatch.setenv(backend.ENVIRONMENT, "reference")
    assert torch.equal(reads(x), loop)
    assert torch.equal(reads(x, backend="chunked"), chunked)


def test_a_wrong_word_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.ENVIRONMENT, "fast")
    with pytest.raises(ValueError, match="NESTED_KERNELS_BACKEND is 'fast'; allowed: auto, reference, chunked, triton"):
        reads(operands())


def test_what_the_environment_cannot_have_gives_way_with_one_line(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    x = operands()
    chunked = reads(x, backend="chunked")
    monkeypatch.setenv(backend.ENVIRONMENT, "triton")
    with caplog.at_level(logging.WARNING, "nested_kernels"):
        assert torch.equal(reads(x), chunked)
        assert torch.equal(reads(x), chunked)
        attention_hvp(*(x[n].transpose(1, 2) for n in "qkv"))
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith('delta_rule: backend "chunked" in place of "triton": ')
    assert lines[1].startswith('attention_hvp: backend "chunked" in place of "triton": ')


def test_code_that_is_compiled_says_it_once_too(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    x = operands()
    monkeypatch.setenv(backend.ENVIRONMENT, "triton")
    compiled = torch.compile(lambda **x: reads(x), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**x), compiled(**x))
    (line,) = [r.getMessage() for r in caplog.records if r.name == "nested_kernels"]
    assert line.startswith('delta_rule: backend "chunked" in place of "triton": ')


def test_the_argument_goes_before_what_is_used_and_that_before_the_environment(monkeypatch, caplog) -> None:
    x = operands()
    loop, chunked = reads(x, backend="reference"), reads(x, backend="chunked")
    compiled = torch.compile(lambda **x: reads(x), fullgraph=True, backend="aot_eager")
    monkeypatch.setenv(backend.ENVIRONMENT, "reference")
    with backend.using("chunked"):
        assert torch.equal(reads(x), chunked)
        assert torch.equal(compiled(**x), chunked)
        assert torch.equal(reads(x, backend="reference"), loop)
        with backend.using("auto"):
            assert torch.equal(reads(x), loop)
    assert torch.equal(reads(x), loop)
    assert torch.equal(compiled(**x), loop)  # which knows when it was compiled for something else
    with backend.using("triton"):
        assert torch.equal(reads(x), chunked)
    assert "in place of" in caplog.text
    with (
        pytest.raises(ValueError, match="using: backend is 'fast'; allowed: auto, reference"),
        backend.using("fast"),
    ):
        pass


def test_an_argument_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend is 'triton', and (Triton is not|the operands are on cpu)"):
        reads(operands(), backend="triton")


def test_a_missing_triton_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    uncached = backend._without_triton.__wrapped__
    assert uncached(torch.device("cuda:0")) == "Triton is not installed"


def test_a_chunk_too_many_for_the_grid_is_a_reason() -> None:
    x = {name: t[..., :1] if t.ndim == 4 else t for name, t in operands(65_001).items()}
    with pytest.raises(ValueError, match=r"more than 65000 chunks of 1 tokens"):
        reads(x | {"state": x["state"][..., :1, :]}, backend="triton", chunk=1)


def test_operations_of_the_kernels_are_counted_as_those_of_the_chunked_form() -> None:
    """Else a memory would cost nothing on a GPU, and equal FLOPs mean something else there."""
    pytest.importorskip("triton")
    from nested_kernels.delta_rule.chunked import read_chunks
    from nested_kernels.delta_rule.library import recurrence
    from torch.utils.flop_counter import FlopCounterMode

    shape = (2, 3, 100, 16)
    q, k, v = (torch.empty(shape, device="meta", requires_grad=True) for _ in range(3))
    eta, alpha = (torch.empty(shape[:3], device="meta", requires_grad=True) for _ in range(2))
    memory = torch.empty(2, 3, 16, 16, device="meta", requires_grad=True)
    options = (2.0, 0.0, "cumulative", 32, 0)
    counted = []
    for again in ((True,), ()):
        with FlopCounterMode(display=False) as counter:
            y = (recurrence if again else read_chunks)(q, k, v, eta, alpha, memory, *options, *again)[0]  # type: ignore[operator]
            forward = counter.get_total_flops()
            y.sum().backward()
        counted.append((forward, counter.get_total_flops() - forward))
    assert counted[0][0] == counted[1][0] > 0
    assert counted[0][1] == pytest.approx(counted[1][1], rel=0.3)
