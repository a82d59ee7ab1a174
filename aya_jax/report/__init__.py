"""The page of a run or a study: one self-contained HTML file, drawn from `report.json` alone."""
