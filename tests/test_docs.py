"""The reference in docs/ is what the code says: every component, every key, its default; `--regenerate` rewrites it."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from imagebuilder import options as option_types
from imagebuilder import plugins

DOCS = Path(__file__).parent.parent / "docs"
TITLES: dict[plugins.Kind, tuple[str, str]] = {
    "builders": ("builders.md", "Builders"),
    "provisioners": ("provisioners.md", "Provisioners"),
    "post_processors": ("post-processors.md", "Post-processors"),
}
CORE: dict[plugins.Kind, str] = {
    "builders": "Every builder also takes `type` and `name`.",
    "provisioners": "Every provisioner also takes `type`, `only`, `except`, `override`, `pause_before`, `timeout`, "
    "`max_retries`, and `cache` and `cache_key` ([layers](layers.md)).",
    "post_processors": "Every post-processor also takes `type`, `name`, `only`, `except` and `keep_input_artifact`.",
}


def default(field: typing.Any) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value in ("", None, (), {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if any(word in str(field.annotation) + str(field.metadata) for word in ("_duration",)):
        return f"`{value:g}s`"
    if any("bytes_of" in str(word) for word in field.metadata):
        return f"`{value // 2**20}M`"
    return f"`{value}`" if not isinstance(value, option_types.Options) else ""


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def section(kind: plugins.Kind, name: str) -> str:
    component = plugins.load(kind, name)
    assert component is not None
    model = component.Options
    story = re.sub(r"\s+", " ", (model.__doc__ or "").strip())
    rows = [
        f"| `{key}` | {cell(field.description or '')} | {cell(default(field))} |"
        for key, field in model.model_fields.items()
    ]
    old = [f"`{key}` (now `{new}`)" for key, new in model.renamed.items()]
    understood = f"\nOlder keys that are understood: {', '.join(old)}.\n" if old else ""
    return f"## {name}\n\n{story}\n\n| key | meaning | default |\n|---|---|---|\n" + "\n".join(rows) + "\n" + understood


@pytest.mark.parametrize("kind", TITLES)
def test_the_reference_is_up_to_date(kind: plugins.Kind, request: pytest.FixtureRequest) -> None:
    file, title = TITLES[kind]
    made_by = "<!-- Made from the code: .venv/bin/pytest tests/test_docs.py --regenerate -->"
    text = f"# {title}\n\n{made_by}\n\n{CORE[kind]}\n\n" + "\n".join(
        section(kind, name) for name in plugins.BUILT_IN[kind]
    )
    if request.config.getoption("--regenerate"):
        (DOCS / file).write_text(text, encoding="utf-8")
    assert (DOCS / file).read_text(encoding="utf-8") == text


@pytest.mark.parametrize("kind", TITLES)
def test_every_key_says_what_it_is(kind: plugins.Kind) -> None:
    for name in plugins.BUILT_IN[kind]:
        component = plugins.load(kind, name)
        assert component is not None
        silent = [key for key, field in component.Options.model_fields.items() if not field.description]
        assert not [key for key in silent if not key.startswith("winrm_")], f"{name}: {silent}"


def test_links_in_the_documents_lead_somewhere() -> None:
    for page in [DOCS.parent / "README.md", *DOCS.rglob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page}: {link}"
