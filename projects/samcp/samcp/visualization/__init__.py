"""Pictures of images, patches and predictions, and the pages that show them."""
