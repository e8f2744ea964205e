"""`python -m softcam_hub` is `softcam-hub`, and `accelerate launch -m softcam_hub train` trains on many processes."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
