"""Data, and the way from it to a batch: file -> episode (sources) -> rows (load) -> lanes -> segments."""
