"""The class that lmms-eval loads, `MedLoupe`; it is made when it is asked for, so that this file can be read
without lmms-eval.

Its base is `lmms_eval.api.model.lmms`; `Answering` holds what is ours.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from medloupe.errors import ConfigError
from medloupe.evaluate.lmms_eval import Pictures, conversation_of, cut_at, tokens_of
from medloupe.generate import GenerateConfig, Predictor
from medloupe.types import Generation

CLASS = "MedLoupe"


def __getattr__(name: str) -> Any:
    """lmms-eval asks the module for the class by name."""
    if name == CLASS:
        return _made()
    raise AttributeError(name)


class Answering:
    """A saved model: `pretrained` is its folder, or its run's.

    `task_dict` (task -> split -> documents) and `cache_hook` are lmms-eval's own.

    Raises:
        CheckpointError: the folder is missing or incomplete.
        ConfigError: an argument that does not exist here.
    """

    is_simple = False
    task_dict: dict[str, Any]
    cache_hook: Any

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 32,
        device: str | None = None,
        max_batch_size: int | None = None,
        trust_code: bool = False,
        **others: Any,
    ) -> None:
        super().__init__()
        del device, max_batch_size  # the model goes where `Predictor` puts it; batches are as asked
        if others:
            raise ConfigError(f"MedLoupe has no model argument {min(others)!r}")
        folder = Path(pretrained)
        inner = folder / "model"
        self._scratch = tempfile.TemporaryDirectory(prefix="medloupe-lmms-eval-")
        self._pictures = Pictures(Path(self._scratch.name))
        config = GenerateConfig(batch_size=1 if batch_size == "auto" else int(batch_size))
        self._predict = Predictor.load(
            inner if inner.is_dir() else folder,
            root=Path(self._scratch.name),
            trust_code=trust_code,
            config=config,
        )

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """One result a request, in their order; requests of one length limit are asked together."""
        groups: defaultdict[int, list[int]] = defaultdict(list)
        asked = []
        for number, request in enumerate(requests):
            _, messages_of, arguments, doc_id, task, split = request.args
            messages = messages_of(self.task_dict[task][split][doc_id])
            name = f"{task}/{split}/{doc_id}/{number}"
            asked.append(conversation_of(messages, self._pictures, id=name))
            groups[tokens_of(arguments)].append(number)
        said: dict[int, Generation] = {}
        base = self._predict.config
        for limit, numbers in groups.items():
            self._predict.config = base.model_copy(update={"max_new_tokens": limit})
            answers = self._predict([asked[number] for number in numbers])
            said.update(zip(numbers, answers, strict=True))
        self._predict.config = base
        return [self._result(request, said[number]) for number, request in enumerate(requests)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: answers are generated."""
        raise NotImplementedError("MedLoupe answers generate_until; choose such a task")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered."""
        raise NotImplementedError("MedLoupe answers generate_until; choose such a task")

    def _result(self, request: Any, said: Generation) -> Any:
        from lmms_eval.api.instance import GenerationResult, TokenCounts

        context, _, arguments, *_ = request.args
        text = cut_at(said.text, arguments.get("until"))
        self.cache_hook.add_partial("generate_until", (context, arguments), text)
        counts = TokenCounts(output_tokens=len(said.token_ids))
        return GenerationResult(text=text, token_counts=counts)


@cache
def _made() -> type:
    from lmms_eval.api.model import lmms

    return type(CLASS, (Answering, lmms), {"__module__": __name__, "__doc__": Answering.__doc__})
