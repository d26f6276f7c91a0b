"""What is raised for bad input: one sentence that names the value, the limit and the way out."""


class BadInput(ValueError):
    """The caller gave something that cannot be used; the command line prints it and exits with status 2."""
