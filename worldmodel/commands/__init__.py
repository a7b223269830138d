"""What the command line runs. Each command imports what it needs when it runs."""
