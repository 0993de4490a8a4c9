"""A plugin of pytest that writes each failure to a file as it happens.

    FAILED_TESTS=failed.txt python -m pytest -p failed_tests

A run that is cut before its summary still says what failed, and why.
"""

import os


def pytest_collectreport(report):
    """A file that cannot be imported is a failure, too."""
    pytest_runtest_logreport(report)


def pytest_runtest_logreport(report):
    """In the process that the others report to."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        reasons = [
            line.strip()
            for line in report.longreprtext.splitlines()
            if line.startswith("E ")
        ]
        with open(os.environ["FAILED_TESTS"], "a") as file:
            print(report.nodeid, " | ".join(reasons)[:1000], file=file, sep=" :: ")
