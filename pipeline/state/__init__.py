"""What a sequence keeps between passes: KV blocks, and where they live."""
