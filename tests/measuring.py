"""What tests have measured, told at the end of a run: `record_property("measured", "...")`."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports(""):
        for name, value in getattr(report, "user_properties", ()):
            if name == "measured" and report.when == "teardown":
                terminalreporter.write_line(f"measured  {value}")
