"""Running out of memory in a step: once, always, with nothing to halve; and what counts as that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import build_tiny_model
from tiny_policies import Folders, batch, build, example, publish

from daemon.domain.errors import StepMemoryError
from daemon.domain.records import Batch
from daemon.training import gradients, policy
from daemon.training.second_try import is_out_of_memory

WORDS = ("Why?", "Why is that so?", "And then?", "Tell me more of it.", "So?", "Who was it that said this?")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def of_six(model_dir: Path) -> Batch:
    """Six examples of different lengths, two of them without a rejected answer."""
    examples = tuple(example(model_dir, text, pair=index % 3 != 2) for index, text in enumerate(WORDS))
    return Batch(1, "base", "batch of six", examples)


class ShortOfMemory:
    """`backward` of the gradient's passes, which finds no memory at some calls of it, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, at: range, error: type[RuntimeError]) -> None:
        self.calls = 0
        self._at, self._error = at, error
        self._backward = torch.Tensor.backward

        def backward(loss: torch.Tensor) -> None:
            self._backward_of(loss)

        monkeypatch.setattr(torch.Tensor, "backward", backward)

    def _backward_of(self, loss: torch.Tensor) -> None:
        self.calls += 1
        if self.calls in self._at:
            if self._error is torch.OutOfMemoryError:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nDetails follow")
            torch.empty(2**62, dtype=torch.int8)  # more than there is anywhere: what the CPU's allocator really raises
        self._backward(loss)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("objective", ["orpo", "dpo"])
def test_the_second_try_is_the_step_of_half_the_micro_batch(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[RuntimeError], objective: str
) -> None:
    """Memory runs out in the second of two passes, half a gradient is there already: weights and optimizer end with
    the bits of a policy that was configured with the half. The next step has the whole again; told the micro-batch of
    the report, a policy that was configured with the whole makes the same step again."""
    settings: dict[str, object] = {"objective": objective, "gradient_scope": "full"}
    store = Folders(tmp_path / "checkpoints")
    short, half, again = (build(model_dir, store, micro_batch=size, **settings) for size in (4, 2, 4))
    base = publish(store, short, "base")
    todo = replace(of_six(model_dir), reference=base)
    assert [len(part.indices) for part in gradients.micro_batches(todo.examples, short._config)] == [4, 2]
    expected = half.step(todo)
    with monkeypatch.context() as patched:
        ShortOfMemory(patched, at=range(2, 3), error=error)
        report = short.step(todo)
    assert (report.micro_batch, expected.micro_batch) == (2, 2)
    assert short.digests() == half.digests() != build(model_dir, store, **settings).digests()
    assert replace(report, seconds={}, peak_memory_bytes=0) == replace(expected, seconds={}, peak_memory_bytes=0)
    again.step(todo, micro_batch=report.micro_batch)
    assert again.digests() == short.digests()
    short.adopt("v1")
    later = replace(todo, cycle_number=2, parent_version="v1", batch_hash="the next", reference=base)
    later = replace(later, examples=tuple(replace(e, policy_version="v1") for e in later.examples))
    assert short.step(later).micro_batch == 4


def test_a_shortage_that_lasts_moves_nothing(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tries fail: an error with both sizes and the fix; weights, optimizer, gradients and the generator are as
    before, and the model is in evaluation mode. With memory the step is the one that it would have been."""
    short, straight = (build(model_dir, Folders(tmp_path), micro_batch=4) for _ in range(2))
    before, generator = short.digests(), torch.get_rng_state()
    with monkeypatch.context() as patched:
        passes = ShortOfMemory(patched, at=range(1, 99), error=torch.OutOfMemoryError)
        with pytest.raises(StepMemoryError, match=r"4 in a pass, and again with 2; .*training\.micro_batch") as caught:
            short.step(of_six(model_dir))
    assert "activation_checkpointing" in str(caught.value) and "2.00 GiB" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None, "its traceback would keep what the passes allocated"
    assert passes.calls == 2
    assert short.digests() == before
    assert all(parameter.grad is None for parameter in short.model.parameters())
    assert torch.equal(torch.get_rng_state(), generator) and not short.model.training
    for live in (short, straight):
        live.step(of_six(model_dir))
    assert short.digests() == straight.digests() != before


def test_what_cannot_be_halved_is_not_tried_again(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 1 example in a pass there is one try; a micro-batch above the batch's size is halved from that size."""
    passes = ShortOfMemory(monkeypatch, at=range(1, 99), error=torch.OutOfMemoryError)
    with pytest.raises(StepMemoryError, match="1 in a pass; the optimizer did not move"):
        build(model_dir, Folders(tmp_path), micro_batch=1).step(of_six(model_dir))
    assert passes.calls == 1
    with pytest.raises(StepMemoryError, match=r"6 in a pass, and again with 3; .*\(now 64\)"):
        build(model_dir, Folders(tmp_path), micro_batch=64).step(of_six(model_dir))


def test_nothing_is_tried_twice_once_weights_may_have_moved(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out while the update is applied: the allocator's own error, after one gradient."""
    short, counted = build(model_dir, Folders(tmp_path)), []
    monkeypatch.setattr(policy, "accumulate", lambda *args: counted.append(1) or gradients.accumulate(*args))

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(short._optimizer, "step", fail)
    with pytest.raises(torch.OutOfMemoryError):
        short.step(batch(model_dir, 1, "base"))
    assert counted == [1]


def test_other_errors_are_no_shortage(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in a pass is raised as it is, at once; of torch's errors those of its allocators count."""
    calls: list[int] = []

    def broken(*_: Any) -> None:
        calls.append(1)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(policy, "accumulate", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        build(model_dir, Folders(tmp_path)).step(batch(model_dir, 1, "base"))
    assert calls == [1]
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.int8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
