"""What is computed: pure functions of (weights, hidden, KV)."""
