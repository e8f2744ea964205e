"""`python -m softcam_hub` is `softcam-hub`, and `accelerate launch -m softcam_hub` runs it on many processes."""

import sys

from .cli import main

sys.exit(main())
