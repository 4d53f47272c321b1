"""Tensors as a model asks for them, and as files hold them."""
