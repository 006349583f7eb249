"""vLLM in this process. The only module that imports it."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from daemon.config.sections import SweepConfig
from daemon.domain.errors import EngineError
from daemon.domain.precision import LOGPROB_TOLERANCE
from daemon.domain.records import Generation, GenerationRequest
from daemon.ports import ProgressCallback
from daemon.sweep.plan import WRITING_MIN_P
from daemon.sweep.weights import check_weights


class VllmEngine:
    """Implements the `Engine` port with vLLM's engine core as part of this process (no children)."""

    name = "vllm"

    def __init__(self, model_dir: Path, version: str, end_of_turn: int, config: SweepConfig) -> None:
        """Load the model folder; takes about 12 s on a CPU.

        Raises:
            EngineError: vLLM is not installed or cannot serve this model.
        """
        self._config = config
        self._version = version
        self._end_of_turn = end_of_turn
        self._request_ids = count()
        with safe_open(model_dir / "model.safetensors", framework="pt") as opened:
            self._shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        # Its warnings name tuning options and internals ("ParallelLMHead: Failed to load weights" on every sync).
        logging.getLogger("vllm").setLevel(logging.ERROR)
        with _unchanged_environment(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated names of torch and Python, used by vLLM itself
            os.environ.update(_settings(config))
            try:
                import vllm
            except ImportError as error:
                raise EngineError(
                    f'vLLM cannot be imported ({error}); install it, or set sweep.engine = "transformers"'
                ) from error
            self._vllm = vllm
            try:
                self._llm: Any = vllm.LLM(
                    model=str(model_dir),
                    dtype=config.dtype,
                    # Where a batch's prompts exceed its token budget, vLLM computes one of them in parts and then sets
                    # back that request's random generator, which torch cannot do on the CPU. Whole prompts need no
                    # such thing; hybrid models cannot cache prefixes without it.
                    enable_chunked_prefill=None if torch.cuda.is_available() or _is_hybrid(model_dir) else False,
                    enforce_eager=True,  # compiling costs a minute at start and gains little at this size
                    max_model_len=config.max_model_len,
                    max_num_seqs=config.max_num_seqs,
                    gpu_memory_utilization=config.gpu_memory_utilization,
                    generation_config="vllm",  # sampling settings come from the request alone
                    # Free white space lets a small model write blanks until its tokens are used up.
                    structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
                    use_tqdm_on_load=False,
                    seed=0,
                )
            except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
                raise EngineError(f"vLLM cannot serve {model_dir}: {error}") from error

    @property
    def policy_version(self) -> str:
        return self._version

    @property
    def logprob_tolerance(self) -> float:
        return LOGPROB_TOLERANCE[self._config.dtype]

    def generate(self, requests: Sequence[GenerationRequest], progress: ProgressCallback) -> list[Generation]:
        engine = self._llm.llm_engine
        ids = [f"dreamd-{next(self._request_ids)}" for _ in requests]
        finished: dict[str, Generation] = {}
        try:
            with warnings.catch_warnings():
                # vLLM compiles grammars, in a thread, with an argument that xgrammar has deprecated.
                warnings.filterwarnings("ignore", "max_rollback_tokens is deprecated", DeprecationWarning)
                for request_id, request in zip(ids, requests, strict=True):
                    prompt = {"prompt_token_ids": list(request.prompt_token_ids)}
                    engine.add_request(request_id, prompt, self._sampling(request))
                answered = time.monotonic()
                while engine.has_unfinished_requests():
                    outputs = engine.step()
                    answered = self._still_answers(bool(outputs), answered)
                    for output in outputs:
                        if output.finished:
                            finished[output.request_id] = _generation(output)
                    progress(len(finished), len(requests))
        except BaseException as error:
            # A stop or a failure must leave nothing running: weights cannot be synced under a request.
            engine.abort_request([request_id for request_id in ids if request_id not in finished])
            if isinstance(error, (ValueError, RuntimeError)):
                raise EngineError(f"vLLM failed while generating: {error}") from error
            raise
        missing = [request_id for request_id in ids if request_id not in finished]
        if missing:
            raise EngineError(f"vLLM answered {len(finished)} of {len(ids)} requests")
        return [finished[request_id] for request_id in ids]

    def forget(self) -> None:
        # False means that a request still runs.
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM did not reset its prefix cache; answers to known prefixes would be stale")

    def sync(self, weights: Mapping[str, Tensor], version: str) -> None:
        check_weights(weights, self._shapes)
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": list(weights.items())})
            self._repack_tied_head()
        except (RuntimeError, ValueError, KeyError) as error:
            raise EngineError(f"vLLM failed while taking new weights: {error}") from error
        self.forget()  # cached prefixes were computed by the old weights
        self._version = version

    def weights_match(self, weights: Mapping[str, Tensor]) -> bool:
        """Compare the tensors vLLM keeps unfused and unpacked under their own names: embeddings and norms."""
        own = dict(self._model().named_parameters())
        compared = [name for name in weights if name in own and ("embed" in name or "norm" in name)]
        if not compared:
            raise EngineError(
                "none of this model's tensors can be compared with vLLM's; use sweep.engine = transformers"
            )
        for name in compared:
            expected = weights[name].to(device=own[name].device, dtype=own[name].dtype)
            # vLLM pads vocabularies, so only the rows that exist are compared.
            if not torch.equal(own[name].detach()[: expected.shape[0]], expected):
                return False
        return True

    def close(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _still_answers(self, has_outputs: bool, answered: float) -> float:
        """When it last computed something; steps that compute nothing return, so no deadline would notice them."""
        now = time.monotonic()
        if has_outputs:
            return now
        if now - answered > self._config.deadline_s:
            raise EngineError(f"vLLM computed nothing in {self._config.deadline_s:.0f} s of steps")
        return answered

    def _sampling(self, request: GenerationRequest) -> Any:
        held = None
        if request.json_schema is not None:
            held = self._vllm.sampling_params.StructuredOutputsParams(json=request.json_schema)
        return self._vllm.SamplingParams(
            temperature=request.temperature,
            seed=request.seed,
            max_tokens=request.max_new_tokens,
            stop_token_ids=[self._end_of_turn],
            logprobs=0,  # the sampled token's own log-probability, of the distribution at temperature 1
            structured_outputs=held,
            min_p=0.0 if held is None else WRITING_MIN_P,
        )

    def _model(self) -> Any:
        worker = self._llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
        return worker.model_runner.model

    def _repack_tied_head(self) -> None:
        # On the CPU vLLM keeps a packed copy of the head. reload_weights refreshes it only when the head has
        # weights of its own; a tied one would silently stay the old one.
        if "lm_head.weight" not in self._shapes:
            head = self._model().lm_head
            head.quant_method.process_weights_after_loading(head)


def _generation(output: Any) -> Generation:
    answer = output.outputs[0]
    logprobs = tuple(
        position[token].logprob for token, position in zip(answer.token_ids, answer.logprobs or (), strict=True)
    )
    return Generation(tuple(answer.token_ids), answer.text, logprobs, str(answer.finish_reason))


def _is_hybrid(model_dir: Path) -> bool:
    """Whether some layers are no attention (Gated DeltaNet, Mamba)."""
    layers = json.loads((model_dir / "config.json").read_text(encoding="utf-8")).get("layer_types") or ()
    return any("attention" not in layer or layer == "linear_attention" for layer in layers)


def _settings(config: SweepConfig) -> dict[str, str]:
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no child to outlive a kill -9
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CONFIGURE_LOGGING": "0",  # its records reach dreamd's own log
        "VLLM_NO_USAGE_STATS": "1",
    }


@contextmanager
def _unchanged_environment() -> Iterator[None]:
    """Undo what importing vLLM does to os.environ (LD_PRELOAD among others), which subprocesses would inherit."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
