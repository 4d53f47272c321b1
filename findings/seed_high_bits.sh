#!/bin/bash
# torch 2.13.0: the generator of the CPU takes any 64-bit seed, says that it has it, and draws with its low 32 bits.
#
# torch.manual_seed and Generator.manual_seed document seeds from -2**63 to 2**64 - 1. initial_seed() returns the whole
# seed, but the Mersenne Twister behind it is seeded with 32 bits: seeds that differ in the high half only draw the same
# numbers, without error or warning. So a seed taken from a clock in nanoseconds, or a hash, counts for half; and a
# stream of seeds s, s + 2**32, ... (workers, samples) is one seed.
#
# Seen: seed 1 and seed 1 + 2**32 draw [0.757631..., 0.279310...], both; initial_seed() is 4294967297 for the second.
# Way out: numpy.random.default_rng or random.Random, which take all bits, or fold the seed before it is given.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0"
cat > "$folder/seeds.py" <<'PROGRAM'
import sys, warnings
warnings.simplefilter("ignore")  # numpy is not installed
import torch

def draws(seed):
    generator = torch.Generator().manual_seed(seed)
    return generator.initial_seed(), torch.rand(2, generator=generator).tolist()

first, other = draws(1), draws(1 + 2**32)
print(torch.__version__, first, other)
sys.exit(not (first[1] == other[1] and other[0] == 1 + 2**32))
PROGRAM
"$folder/venv/bin/python" "$folder/seeds.py"
