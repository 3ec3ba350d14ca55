"""A pytest plugin for `make notebooks`: where a cell fails, its report shows what the cell wrote to stderr.

nbval only says that there was some.
"""

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        outputs = getattr(item, "test_outputs", None) or []
        text = "".join(out.text for out in outputs if out.get("name") == "stderr")
        if text:
            report.sections.append(("the cell's stderr", text))
    return report
