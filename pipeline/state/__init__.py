"""What a sequence keeps between passes: KV blocks and recurrent states, and where they live."""
