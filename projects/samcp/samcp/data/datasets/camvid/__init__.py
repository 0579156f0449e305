"""CamVid."""
