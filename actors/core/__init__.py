"""The kernel: messages, the channels between actors, the budgets that bound them, and the shapes of an actor."""
