"""Run the demo page with the model that comes with softcam_hub; add folders or repositories to show other models."""

from softcam_hub import CAPE_LESIONS
from softcam_hub.demo import open_page

if __name__ == "__main__":
    open_page([CAPE_LESIONS]).block_thread()
