"""Images, patches and targets for the model."""

from samcp.data.build import build_test_loader, build_train_loader, check_test_data

__all__ = ["build_test_loader", "build_train_loader", "check_test_data"]
