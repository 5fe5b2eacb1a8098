"""What README.md keeps to; that its code and its commands run is tested with those of the site, in `tests/docs`."""

import re

from documentation import PAGES, ROOT, code

TEXT = PAGES["README"]


def test_an_own_rule_is_short():
    (block,) = [block for block in code("README", "python") if "@kj.register" in block]
    assert len([line for line in block.splitlines() if line.strip()]) <= 15


def test_every_page_is_listed():
    assert {link for link in re.findall(r"\(docs/pages/(\w+)\.md\)", TEXT)} == set(PAGES) - {"README", "index"}


def test_the_command_of_the_tests_is_marked():
    (command,) = re.findall(r"<!-- test -->\n```bash\n(.*?)\n```", TEXT, re.DOTALL)
    assert "pytest" in command and "<!-- test -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
