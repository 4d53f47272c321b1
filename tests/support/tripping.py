"""A stage that fails once when it is armed."""

from pipeline import Message, Slot, Stage


class Trip(Stage):
    armed = False

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        if self.armed:
            self.armed = False
            raise ValueError("on purpose")
        return message
