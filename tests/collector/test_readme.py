"""The README of collector-config/ names every file, every variable with its default, and every setting it explains."""

import re

import pytest

from tests.collector.support import CONFIGS

README = (CONFIGS / "README.md").read_text()
FILES = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*") if p.is_file() and p.name != "README.md")
COLLECTOR_FILES = [name for name in FILES if "/" not in name and name != "builder.yaml"]


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_in_the_table(name: str) -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    assert any(f"`{name}`" in row.split("|")[1] for row in rows)


def test_every_row_of_the_table_of_files_is_a_file() -> None:
    table = README[: README.index("## Run it")]
    named = re.findall(
        r"`([^`]+)`", " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    )
    assert [name for name in named if not (CONFIGS / name).is_file()] == []


@pytest.mark.parametrize("name", COLLECTOR_FILES)
def test_every_variable_is_explained(name: str) -> None:
    used = set(re.findall(r"\$\{env:([A-Z_]+)", (CONFIGS / name).read_text()))
    rows = " ".join(line.split("|")[1] for line in README.splitlines() if line.startswith("| `"))
    assert used <= set(re.findall(r"`([A-Z_]+)`", rows))


@pytest.mark.parametrize("name", COLLECTOR_FILES)
def test_every_variable_has_a_default(name: str) -> None:
    text = re.sub(r"#.*", "", (CONFIGS / name).read_text())
    assert re.findall(r"\$\{env:[A-Z_]+\}", text) == []
