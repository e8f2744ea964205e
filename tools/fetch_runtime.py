"""Fetch onnxruntime-web from the npm registry: the version that exported pages load, for their tests.

python -m tools.fetch_runtime   # 33 MB, into build/onnxruntime-web
"""

import base64
import hashlib
import io
import tarfile
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from softcam_hub.files import draft_of
from softcam_hub.web.page import RUNTIME_FILES, RUNTIME_VERSION

FOLDER = Path(__file__).parents[1] / "build" / "onnxruntime-web"
ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{RUNTIME_VERSION}.tgz"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Checksum of the package in the registry."""


def fetch_runtime(folder: Path = FOLDER) -> Path:
    """Return the folder of the runtime's files, and fetch them if they are not there."""
    if all((folder / name).is_file() for name in RUNTIME_FILES):
        return folder
    with urlopen(ADDRESS, timeout=60) as response:
        package = response.read()
    found = base64.b64encode(hashlib.sha512(package).digest()).decode()
    if found != SHA512:
        raise ValueError(f"{ADDRESS} has the checksum {found}, expected {SHA512}")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for name in RUNTIME_FILES:
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None
            with draft_of(folder / name) as draft:  # a file that was cut off would never be fetched again
                draft.write_bytes(member.read())
    return folder


def main() -> None:
    """Fetch the runtime, or end with a sentence that says what can be done without it."""
    try:
        print(fetch_runtime(FOLDER))
    except (OSError, HTTPException, ValueError) as error:
        raise SystemExit(
            f"onnxruntime-web cannot be fetched from {ADDRESS}: {error}\n"
            f"Copy {', '.join(RUNTIME_FILES)} of that package into {FOLDER} by hand, "
            "or run 'make test', which needs no runtime"
        ) from None


if __name__ == "__main__":
    main()
