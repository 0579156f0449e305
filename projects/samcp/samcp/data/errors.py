"""What goes wrong with data that a user gives."""


class DataError(ValueError):
    """A dataset, an image or a ground truth is missing, unreadable or inconsistent; the message says what to do."""
