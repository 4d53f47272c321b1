"""`python -m pipeline` is `penstock`."""

import sys

from pipeline.cli import main

sys.exit(main())
