"""Puts what was measured into a page, between two markers that stay."""

import re
from pathlib import Path


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
      ValueError: the page has not both markers, once each.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    whole = page.read_text("utf-8")
    parts = re.split(f"{re.escape(begin)}|{re.escape(end)}", whole)
    if len(parts) != 3 or whole.index(begin) > whole.index(end):
        raise ValueError(f"{page}: needs {begin} and then {end}, once each")
    before, _, after = parts
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", "utf-8")
