"""Update rules compared: which runs, what they came to, who wins, and the report."""
