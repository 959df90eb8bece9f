"""Run transformers' own common tests on our classes: `python -m pytest -m slow tests/hf`."""

from collections import Counter

import transformers


# Importing these modules fetches the source distribution of transformers.
collect_ignore = ["transformers_suite"]
THEIR_MARKERS = (
    *("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test"),
    *("torch_compile_test", "torch_export_test", "is_training_test", "order"),
)


def pytest_configure(config):
    for marker in THEIR_MARKERS:
        config.addinivalue_line("markers", f"{marker}: used by transformers' tests")


def pytest_ignore_collect(collection_path, config):
    # Collecting them fetches the source distribution, so do not collect them without `-m slow`.
    if collection_path.name.startswith("test_") and "not slow" in config.option.markexpr:
        return True
    return None


def pytest_terminal_summary(terminalreporter):
    """Print the counts, and the reasons of skipped tests."""
    reports = {outcome: ours(terminalreporter, outcome) for outcome in ("passed", "skipped", "failed", "error")}
    if not any(reports.values()):
        return
    counts = ", ".join(f"{len(found)} {outcome}" for outcome, found in reports.items())
    terminalreporter.section(f"tests of transformers {transformers.__version__}: {counts}")
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports["skipped"])
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:5} skipped: {' '.join(reason.split())}")


def ours(terminalreporter, outcome: str) -> list:
    reports = terminalreporter.stats.get(outcome, [])
    return [report for report in reports if "tests/hf/" in report.nodeid and getattr(report, "when", "") != "teardown"]
