"""Settings of the whole suite: no hub, no display, and no cache outside a temporary folder."""

import os
import shutil
import tempfile

_HF_HOME = tempfile.mkdtemp(prefix="minivllava-tests-")

# Here rather than in a fixture: huggingface_hub, datasets and matplotlib read these when first imported, and
# the processes that tests start inherit them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=_HF_HOME,
    HF_DATASETS_CACHE=os.path.join(_HF_HOME, "datasets"),
    MPLBACKEND="Agg",
)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HF_HOME, ignore_errors=True)
