"""One candidate evaluated: fitted, checked against its reference, timed, compared on a Pareto front."""
