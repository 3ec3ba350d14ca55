"""Chapter 00 in JupyterLab in a real browser, as a learner opens it: Run All ends, without an error, with its figures.

Needs what only this test needs, and skips without: a Chromium on the PATH, `pip install playwright`, and JupyterLab
(the extra `teach`).
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("jupyterlab")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that serves a copy of the notebooks, with its settings in a folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    folders |= {"JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "spaces"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
               "--IdentityProvider.token=", "--ServerApp.port_retries=0"]  # fmt: skip
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(command, cwd=tmp_path / "notebooks", env=os.environ | folders, stdout=log, stderr=log)
        try:
            for _ in range(120):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, (tmp_path / "lab.log").read_text()[-2000:]
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", tmp_path / "notebooks"
        finally:
            server.terminate()
            server.wait(30)


def test_start_here_runs_in_a_browser(lab, tmp_path):
    address, folder = lab
    file = folder / "00_start_here.ipynb"
    before = json.loads(file.read_text())
    for cell in before["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    file.write_text(json.dumps(before))  # what is seen below was made below
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 1600})
        page.set_default_timeout(120_000)
        page.goto(f"{address}/lab/tree/{file.name}")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        saved = _saved_when_run(page, file, sum(cell["cell_type"] == "code" for cell in before["cells"]))
        page.screenshot(path=os.environ.get("MINIVLLAVA_SCREENSHOT", tmp_path / "lab.png"))
        browser.close()
    outputs = [output for cell in saved for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4


def _saved_when_run(page, file: Path, count: int) -> list[dict]:
    """The notebook's code cells, saved by the page once all `count` of them have run or one has failed."""
    for _ in range(240):
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
        failed = any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
        if failed or sum(cell["execution_count"] is not None for cell in cells) == count:
            return cells
    raise AssertionError("Run All did not end within four minutes.")
