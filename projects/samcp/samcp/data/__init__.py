"""Images, patches and targets for the model."""

from .build import build_test_loader, build_train_loader, check_test_data
from .errors import DataError
from .vocabulary import Vocabulary

__all__ = ["DataError", "Vocabulary", "build_test_loader", "build_train_loader", "check_test_data"]
