"""An open model over HTTP, as OpenAI's clients ask for it. Torch is imported when the port listens already."""
