"""The `dreamd.toml` that `dreamd init` writes: the keys that matter, each with its default and what it does."""

from __future__ import annotations

import json
from pathlib import Path

from daemon.config import Config

_TEMPLATE = """\
# dreamd configuration, written by `dreamd init`.
# `dreamd config show` prints every key, its value and where it comes from; `dreamd config check` validates this file.
# The environment (DREAMD_TRAINING__LR=2e-5) and flags (--set training.lr=2e-5) override it.
# A commented key has its default.

[run]
name = {name}
state_dir = {state_dir}          # checkpoints, logs, the SQLite database, the lock
# database_url = "postgresql://dreamd@localhost/dreamd"   # default: STATE_DIR/dreamd.sqlite3
# seed = 0                       # fixed at `dreamd init`

[model]
path = {model_path}   # a Hugging Face folder
# device = "auto"                # "cpu" or "cuda" to force one

[scenarios]
# packs = ["packs/mine.yaml"]    # beside the built-in ones; `dreamd scenarios init` writes one to start from
# builtin = ["listening", "coding", "arithmetic", "reasoning", "writing", "honesty"]
# per_cycle = 28
# general_fraction = 0.25        # at least a quarter, against forgetting
# dream_fraction = 0.1           # of the behavioural ones: written by the policy itself
# conversation_fraction = 0.25   # likewise: from logs that `dreamd scenarios import` read and you approved
# replay_fraction = 0.5          # of the general ones: from data of your own, likewise

[sweep]
# engine = "vllm"                # "transformers" needs no vLLM and is slower
# temperatures = [0.1, 0.7, 1.0]
# samples = 2                    # answers per scenario and temperature
# max_new_tokens = 64
# deadline_s = 900               # an engine that makes no step for so long hangs: the process ends, to be started again

[preferences]
# judge_without_rule = "contrast"   # "model": a rubric, answered yes or no; "none"

[training]
# objective = "orpo"             # "sft", or against a reference: "dpo", "ipo", "dpop"
# lr = 1e-5                      # the default for sft and orpo; 5e-7 for dpo, ipo and dpop
# schedule = "constant"          # "cosine" falls over schedule_cycles; warmup_cycles come first
# optimizer = "apollo"           # "apollo_mini", "adamw"
# precision = "fp32"             # "bf16-stochastic" takes half the memory
# gradient_scope = "context_frozen"   # "full": through the prompt as well
# orpo_weight = 0.1
#
# Or a plan, one phase after another, instead of objective, lr and schedule above:
#   [[training.phases]]
#   objective = "sft"
#   cycles = 20
#   [[training.phases]]
#   objective = "orpo"           # the last phase may go on for ever

[checkpoints]
# keep_last = 8                  # newest whose image (bfloat16) is kept, beside the base, rollback targets and pins
# keep_every = 50                # the image of every 50th is kept for ever
# keep_exact = 2                 # newest that keep weights and optimizer as trained; the others are lossy
# keyframe_every = 20            # longest chain of deltas
# mirror_url = "sftp://dreamd@backup.example/srv/dreamd"   # a second place; also file://, s3://; default: none
# mirror_exact = true            # of base, rollback targets and pins; false: images alone, far less to send
# scrub_mib = 512                # MiB read again and compared with their hashes, per cycle; 0: never
# rehearse_every_days = 7        # between two rehearsals of a restore; 0: never

[probes]
# suites = ["suites/mine.yaml"]  # held-out texts and prompts of your own, beside the shipped ones
# nll_documents = 24
# answer_items = 12              # held-out answers of chosen_logp, sycophancy and direction_influence
# behaviour_items = 32           # held-out prompts per side and cycle, in turn from a pool
# capability_items = 24          # held-out tasks of arithmetic, code, reasoning, likewise
# budget = 0.25                  # share of a cycle's time; what the watchdog decides by is always measured

[watchdog]
# max_nll_rise = 0.10            # nats per token over the parent: refused at once
# margin_baked = 0.01            # nats per token over the last baked checkpoint
# margin_base = 0.03             # likewise over the base
# baked_after = 10               # later promoted cycles after which a checkpoint is baked
# warmup_cycles = 20             # promoted cycles before pass rates decide
# confirmation_items = 300       # fresh prompts that confirm or clear a suspicion

[breaker]
# max_in_a_row = 2               # rollbacks in a row after which nothing is trained ...
# max_in_window = 3              # ... or so many in window_cycles
# window_cycles = 20
# backoff_s = 3600               # until one gentle trial cycle; `dreamd breaker ack --reason TEXT` does not wait

[governor]
# mode = "act"                   # "advise" records decisions and changes nothing; "off" makes none
# hold_cycles = 10               # cycles that a change after a rollback holds
# rest_cycles = 10               # cycles that the families of a refused batch rest
# general_fraction = 0.4         # share of general scenarios after a rollback
# max_lr = 1e-4                  # it never raises the learning rate above this

[service]
# interval_s = 0                 # seconds from one cycle's start to the next; 0: back to back

[logging]
# level = "info"
# file = true                    # JSON lines in STATE_DIR/dreamd.log
"""


def render_template(config: Config) -> str:
    """The file's text, with the run's name and the two paths of `config` written out."""
    return _TEMPLATE.format(
        name=_quoted(config.run.name), state_dir=_quoted(config.run.state_dir), model_path=_quoted(config.model.path)
    )


def _quoted(value: str | Path) -> str:
    """A TOML basic string; JSON escapes the same characters the same way."""
    return json.dumps(str(value), ensure_ascii=False)
