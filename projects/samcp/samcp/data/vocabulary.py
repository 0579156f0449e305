"""The classes of a registered dataset, things and stuff in one numbering."""

from dataclasses import dataclass

from detectron2.data import MetadataCatalog

from .errors import DataError


@dataclass(frozen=True)
class Vocabulary:
    """C classes with contiguous ids 0..C-1.

    Attributes:
        names: one a class.
        is_thing: one a class; a class that is no thing is stuff.
    """

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]

    @classmethod
    def of_dataset(cls, name: str) -> "Vocabulary":
        """Read it from Detectron2's metadata.

        Detectron2's "standard" panoptic datasets name all classes in stuff_classes and tell things by
        thing_dataset_id_to_contiguous_id; an instance dataset has thing_classes alone, a semantic one stuff_classes.

        Raises:
            DataError: the dataset has neither.
        """
        metadata = MetadataCatalog.get(name)
        names = metadata.get("stuff_classes")
        if names is not None:
            things = set(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
            return cls(tuple(names), tuple(i in things for i in range(len(names))))
        names = metadata.get("thing_classes")
        if names is None:
            raise DataError(
                f"dataset {name!r} has no stuff_classes and no thing_classes in its metadata; set one of them"
            )
        return cls(tuple(names), (True,) * len(names))
