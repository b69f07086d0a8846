"""A conversation that grows: several turns and images, one model."""

from __future__ import annotations

from collections.abc import Sequence

from medloupe.generate.predictor import Predictor
from medloupe.types import Conversation, Generation, ImageRef, Message, Text


class ChatSession:
    """Keeps the conversation; every turn is answered from all of it by the same `Predictor`.

    `system` is shown before the first turn. A turn that cannot be answered leaves no trace.
    """

    def __init__(
        self, predictor: Predictor, *, system: str | None = None, name: str = "chat"
    ) -> None:
        first = () if system is None else (Message(role="system", content=(Text(text=system),)),)
        self.predictor = predictor
        self.conversation = Conversation(id=name, messages=first)

    def ask(self, text: str, images: Sequence[ImageRef] = ()) -> Generation:
        """Answer the next question. Its images stand before its text, as in the data sets.

        Raises:
            PromptError: the text is not one the model can be shown, or the whole is too long.
            ImageError: an image cannot be read.
        """
        asked = self._with(Message(role="user", content=(*images, Text(text=text))))
        (answer,) = self.predictor([asked])
        spoken = Message(role="assistant", content=(Text(text=answer.text),))
        self.conversation = asked.model_copy(update={"messages": (*asked.messages, spoken)})
        return answer

    def _with(self, message: Message) -> Conversation:
        messages = (*self.conversation.messages, message)
        return self.conversation.model_copy(update={"messages": messages})
