"""The measured runs of `benchmarks.checkpoints`. Needs torch."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from benchmarks.checkpoints_report import Beside, RestoreFigures, Saved, StepFigures
from benchmarks.pairs import Pair, Shape, build_pairs
from daemon.checkpoints.image import image_digest
from daemon.checkpoints.store import DirectoryStore
from daemon.config.sections import TrainingConfig
from daemon.domain.hashing import batch_hash, digest
from daemon.domain.records import Batch, Checkpoint, Example, StepReport
from daemon.domain.states import ChosenSource, ExampleKind, Side
from daemon.ports import Publication
from daemon.training.policy import TorchPolicy
from daemon.training.snapshot import OPTIMIZER_FILE, WEIGHTS_FILE

LR = 1e-5
_CALIBRATION_CALLS = 3
_SAVE_PRETRAINED, _DCP, _ALONE = "save_pretrained", "dcp", "alone"


class Trial:
    """Steps one policy, and has every peer save it after each step."""

    def __init__(self, model_dir: Path, scratch: Path, shape: Shape, num_steps: int, work_s: float) -> None:
        """Load the model, publish it as base, and find out how much work takes `work_s` seconds.

        Args:
            shape: of each step's batch; every step has pairs of its own.
        """
        self._scratch, self._per_step = scratch, shape.num_pairs
        self._pairs = build_pairs(model_dir, replace(shape, num_pairs=num_steps * shape.num_pairs))
        # All cores, as probes on the CPU use them, and all but one, as beside probes on a GPU.
        self._cores = sorted({torch.get_num_threads(), max(1, torch.get_num_threads() - 1)}, reverse=True)
        # What is published alone and what is published beside other work: the same lineage each time.
        self._stores = {name: DirectoryStore(scratch / name) for name in (_ALONE, *map(_beside, self._cores))}
        store = self._stores[_ALONE]
        config = TrainingConfig(lr=LR)
        self._policy = TorchPolicy(model_dir, config, "cpu", store.open, open_image=store.image)
        self._heads: dict[str, Checkpoint] = {}
        for name in self._stores:
            self._heads[name] = self._begin(name, "base", None).result()
        self._policy.adopt("base")
        self._published: list[Checkpoint] = []
        self._work(1)  # the first call also pays for what every later one reuses
        self._calls = {cores: self._calls_of(cores, work_s) for cores in self._cores}

    def step(self, number: int) -> StepFigures:
        """One optimizer step, saved by every peer."""
        version = f"cycle-{number:06d}"
        report = self._policy.step(self._batch(number))
        saved = {_ALONE: self._alone(version, report)}
        saved[_SAVE_PRETRAINED] = self._peer(_SAVE_PRETRAINED, self._save_pretrained)
        optimizer_state = load_file(self._stores[_ALONE].path(version) / OPTIMIZER_FILE)
        saved[_DCP] = self._peer(_DCP, partial(self._save_dcp, optimizer_state))
        beside = {cores: self._beside(cores, version, report) for cores in self._cores}
        self._policy.adopt(version)
        checkpoint = self._heads[_ALONE]
        self._published.append(checkpoint)
        for store in self._stores.values():
            if number > 2:  # as the shipped retention does: exact are the newest two
                store.make_lossy(f"cycle-{number - 2:06d}")
        return StepFigures(
            changed=report.bf16_changed or 0.0,
            kind=checkpoint.kind,
            chain_length=checkpoint.chain_length,
            image_bytes=checkpoint.image_bytes,
            save_pretrained=saved[_SAVE_PRETRAINED],
            dcp=saved[_DCP],
            alone=saved[_ALONE],
            beside=beside,
        )

    def restores(self, lengths: Sequence[int]) -> list[RestoreFigures]:
        """The exact newest checkpoint, then images at the end of chains of `lengths`, as far as there are any."""
        newest = self._published[-1]
        found = [self._restore("exact", newest, newest.size_bytes - newest.image_bytes)]
        by_length = {checkpoint.chain_length: checkpoint for checkpoint in reversed(self._published)}
        for length in sorted({*lengths, max(by_length)} & by_length.keys()):
            checkpoint = replace(by_length[length], exact=False)
            found.append(self._restore(f"image, chain length {length}", checkpoint, self._chain_bytes(checkpoint)))
            if image_digest(self._policy.weights()) != checkpoint.image_digest:
                raise AssertionError(f"{checkpoint.version}: the restored weights are not its image")
        return found

    # --- peers ------------------------------------------------------------------------------------------------

    def _alone(self, version: str, report: StepReport) -> Saved:
        """Nothing else to do: the cycle waits for all of it."""

        def publish() -> None:
            self._heads[_ALONE] = self._begin(_ALONE, version, report).result()

        return _saved(publish, self._stores[_ALONE].path(version))

    def _beside(self, cores: int, version: str, report: StepReport) -> Beside:
        """What this takes longer than the work alone, as measured before and after it."""
        name, calls = _beside(cores), self._calls[cores]
        with _threads(cores):
            before = _timed(lambda: self._work(calls))
            started = time.perf_counter()
            publication = self._begin(name, version, report)
            begun = time.perf_counter()
            self._work(calls)
            worked = time.perf_counter()
            self._heads[name] = publication.result()
            done = time.perf_counter()
            alone = (before + _timed(lambda: self._work(calls))) / 2
        return Beside((begun - started) + (done - worked), done - started - alone)

    def _begin(self, name: str, version: str, report: StepReport | None) -> Publication:
        return self._stores[name].begin(
            version,
            self._policy.snapshot(),
            cycle_number=None,
            parent=self._heads.get(name),
            batch_hash=None,
            step=report,
        )

    def _peer(self, name: str, save: Callable[[Path], None]) -> Saved:
        directory = self._scratch / name
        saved = _saved(lambda: save(directory), directory)
        shutil.rmtree(directory)
        return saved

    def _save_pretrained(self, directory: Path) -> None:
        self._policy.model.save_pretrained(directory)
        for path in (*directory.iterdir(), directory, directory.parent):
            _fsync(path)

    def _save_dcp(self, optimizer_state: Mapping[str, Tensor], directory: Path) -> None:
        """Weights and optimizer state; fsync of its files is its default."""
        state = {"model": dict(self._policy.weights()), "optimizer": dict(optimizer_state)}
        with warnings.catch_warnings():  # it warns of saving in one process even when told to
            warnings.simplefilter("ignore")
            save_distributed(state, checkpoint_id=directory, no_dist=True)

    # --- the rest ---------------------------------------------------------------------------------------------

    def _work(self, calls: int) -> None:
        """What probes do, mostly: score answers."""
        for _ in range(calls):
            self._policy.score(self._pairs[0].prompt, self._pairs[0].chosen)

    def _calls_of(self, cores: int, work_s: float) -> int:
        """How much of it takes `work_s` seconds."""
        with _threads(cores):
            return max(1, round(work_s / min(_timed(lambda: self._work(1)) for _ in range(_CALIBRATION_CALLS))))

    def _batch(self, number: int) -> Batch:
        version = self._policy.version
        first = (number - 1) * self._per_step
        examples = tuple(_example(pair, version) for pair in self._pairs[first : first + self._per_step])
        hashed = batch_hash(version, [example.content_hash for example in examples])
        return Batch(number, version, hashed, examples)

    def _restore(self, name: str, checkpoint: Checkpoint, num_bytes: int) -> RestoreFigures:
        return RestoreFigures(name, num_bytes, _timed(lambda: self._policy.restore(checkpoint)))

    def _chain_bytes(self, checkpoint: Checkpoint) -> int:
        store = self._stores[_ALONE]
        root, *deltas = [store.path(version) for version in store.chain(checkpoint.version)]
        of_root = root / WEIGHTS_FILE if root.name == "base" else next(root.glob("image.*"))
        return of_root.stat().st_size + sum(next(link.glob("image.*")).stat().st_size for link in deltas)


def _example(pair: Pair, version: str) -> Example:
    name = digest("benchmark pair", [pair.prompt, pair.chosen, pair.rejected])
    return Example(
        content_hash=name,
        scenario_hash=name,
        side=Side.GENERAL,
        kind=ExampleKind.PAIR,
        chosen_source=ChosenSource.TARGET,
        policy_version=version,
        prompt_token_ids=pair.prompt,
        chosen_token_ids=pair.chosen,
        chosen_text="",
        rejected_token_ids=pair.rejected,
        rejected_text="",
    )


def _beside(cores: int) -> str:
    return f"beside-{cores}"


@contextmanager
def _threads(number: int) -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _saved(action: Callable[[], None], directory: Path) -> Saved:
    cpu_s = time.process_time()
    seconds = _timed(action)
    return Saved(_bytes_in(directory), seconds, time.process_time() - cpu_s)


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _bytes_in(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
