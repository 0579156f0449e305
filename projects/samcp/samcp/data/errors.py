"""What goes wrong with data that a user gives."""


class DataError(ValueError):
    """A dataset, an image or a ground truth is missing, unreadable or inconsistent; the message says what to do."""

    @classmethod
    def missing(cls, path: str, what: str) -> "DataError":
        """A file of a dataset is not there."""
        return cls(
            f"{path}: the {what} is missing; put it there, or name the right folder, by DETECTRON2_DATASETS or in the "
            "yaml of your own data"
        )
