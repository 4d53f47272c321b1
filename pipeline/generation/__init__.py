"""One request from prompt to tokens."""
