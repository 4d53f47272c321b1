"""From the text that a model writes to its reasoning, its calls of tools and the rest."""
