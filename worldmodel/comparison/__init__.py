"""Update rules compared: which runs, their errors, who wins, and the report."""
