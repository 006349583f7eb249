"""The base model's tokenizer and chat template behind the `Encoder` port."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoTokenizer

from daemon.domain.errors import ModelError, PackError
from daemon.domain.records import Message


class ChatEncoder:
    """Encodes prompts and answers exactly as the engine and the trainer both see them."""

    def __init__(self, model_dir: Path) -> None:
        """Load the tokenizer of a model folder.

        Raises:
            ModelError: no usable tokenizer or chat template.
        """
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{model_dir}: its tokenizer cannot be loaded: {error}") from error
        if not self._tokenizer.chat_template:
            raise ModelError(f"{model_dir}: the tokenizer has no chat template; use an instruct model's folder")
        self.end_of_turn = self._find_end_of_turn(model_dir)

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return tuple(
                self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
            )
        except TemplateError as error:
            raise PackError(f"the model's chat template refuses this conversation: {error}") from None

    def encode_response(self, text: str) -> tuple[int, ...]:
        return (*self.encode_text(text), self.end_of_turn)

    def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an answer, special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _find_end_of_turn(self, model_dir: Path) -> int:
        """The special token that the template puts after an assistant's answer.

        Not always `eos_token`: some models end turns with a token of their own.
        """
        user = {"role": "user", "content": "a"}
        start = self._tokenizer.apply_chat_template(
            [user], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        whole = self._tokenizer.apply_chat_template(
            [user, {"role": "assistant", "content": "b"}], tokenize=True, return_dict=False
        )
        special = set(self._tokenizer.all_special_ids)
        for token in whole[len(start) :]:
            if token in special:
                return int(token)
        if self._tokenizer.eos_token_id is None:
            raise ModelError(f"{model_dir}: the chat template ends no turn and there is no eos_token")
        return int(self._tokenizer.eos_token_id)
