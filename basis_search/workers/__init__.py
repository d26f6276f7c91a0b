"""Workers that share one search: leases on candidates, the evaluation log, child processes, PostgreSQL."""
