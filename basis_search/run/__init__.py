"""What the commands `search` and `discover` run, and what a finished run writes."""
